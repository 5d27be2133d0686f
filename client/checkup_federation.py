"""What `fedward hospital doctor` looks at where the hospital is a site of a federation.

The coordinator's gateway is called as the hospital's own gateway calls it: with the site's certificate, by
TLS 1.3, with its name and authority checked. So what stands in the way is seen, whether or not anything runs.
"""

import http.client
import ssl
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from fedward.client.membership import Membership, current_folder
from fedward.common.fleet import RELEASES_PATH
from fedward.common.instants import spelled, utc_now
from fedward.common.key_files import pem
from fedward.common.nginx import program
from fedward.common.release_index import INDEX

Found = tuple[str, str] | None
_RENEW_BEFORE = timedelta(days=30)
_MOST_AHEAD, _MOST_BEHIND = timedelta(seconds=5), timedelta(minutes=5)  # what Flower lets a node's clock be
_SECONDS = 10.0
_RENEW = "Run `fedward hospital renew`, send the file to the coordinator, and `accept` its answer."
_SET_CLOCK = "Set this machine's clock, best by NTP: `sudo timedatectl set-ntp true`."


def is_member(folder: Path) -> bool:
    """Whether this hospital has joined a federation."""
    return current_folder(folder) is not None


def nginx(folder: Path) -> Found:
    """Refused by `program` where it is missing."""
    program()
    return None


def certificate(folder: Path) -> Found:
    """Of this site, by this machine's clock."""
    return judged(Membership.load(folder), utc_now())


def judged(member: Membership, now: datetime) -> Found:
    """What is wrong with the site's certificate at `now`."""
    begins, ends = member.certificate.not_valid_before_utc, member.certificate.not_valid_after_utc
    if now < begins:
        return f"It is valid from {spelled(begins)}, and here it is {spelled(now)}.", _SET_CLOCK
    if now >= ends:
        return f"It expired at {spelled(ends)}.", _RENEW
    if now > ends - _RENEW_BEFORE:
        return f"It expires at {spelled(ends)}.", _RENEW
    return None


def coordinator(folder: Path) -> Found:
    """Whether its gateway answers, is the coordinator's, and lets this site in."""
    member = Membership.load(folder)
    where = f"{member.federation.host}:{member.federation.port}"
    try:
        status, _ = _called(member)
    except ssl.SSLCertVerificationError as error:
        return (
            f"Who answers at {where} does not prove to be the coordinator ({error.verify_message}).",
            "Check this machine's clock and name server; ask the coordinator whether its keys were rotated.",
        )
    except (OSError, http.client.HTTPException) as error:
        return (
            f"Nothing answers at {where} ({error}).",
            "Let this machine call that address and port: by name server, routes and firewall.",
        )
    if status == http.client.UNAUTHORIZED:
        return (
            "The coordinator's gateway does not let this site in.",
            "Ask the coordinator whether it was revoked (`fedward coordinator sites`): then run `fedward "
            "hospital join --anew`, else `fedward hospital renew`.",
        )
    return None


def clock(folder: Path) -> Found:
    """Against the time that the coordinator's gateway tells; nothing is said where it does not answer."""
    try:
        told = _called(Membership.load(folder))[1]
    except (OSError, http.client.HTTPException):
        return None
    return None if told is None else apart(utc_now() - parsedate_to_datetime(told))


def apart(ahead: timedelta) -> Found:
    """What is wrong with a clock that is so much ahead of the coordinator's."""
    if -_MOST_BEHIND <= ahead <= _MOST_AHEAD:
        return None
    seconds = abs(ahead.total_seconds())
    direction = "ahead of" if ahead > timedelta(0) else "behind"
    return f"This machine is {seconds:.0f} s {direction} the coordinator.", _SET_CLOCK


def _called(member: Membership) -> tuple[int, str | None]:
    """The status of a request that changes nothing, and the coordinator's time."""
    authorities = "".join(pem(one.authority).decode() for one in member.federation.current(utc_now()))
    context = ssl.create_default_context(cadata=authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(member.tls_certificate, member.tls_key)
    federation = member.federation
    connection = http.client.HTTPSConnection(
        federation.host, federation.port, timeout=_SECONDS, context=context
    )
    try:
        connection.request("HEAD", RELEASES_PATH + INDEX)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Date")
    finally:
        connection.close()
