"""The coordinator's side of an enrolment: look at a request, answer it, revoke a site.

Order of an answer: the log is written, then the list of sites, then the answer's file. After a crash
between any two, the same request gives an answer again.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from fedward.common.certificates import client_certificate, digest
from fedward.common.enrolment import Answer, JoinRequest, read_request
from fedward.common.errors import EnrolmentRefused
from fedward.common.federation import same_fingerprint
from fedward.common.files import write_atomically
from fedward.common.instants import spelled
from fedward.common.key_files import request_of
from fedward.common.printing import unmistakable
from fedward.common.trust import TrustedKey
from fedward.server.coordinator import Coordinator
from fedward.server.sites import Dated, Issued, Site, Sites, succeed

CERTIFICATE_LIFETIME = timedelta(days=365)
SITE_OVERLAP = timedelta(days=7)  # for which a site's earlier keys and certificate go on
_OLDEST_REQUEST = timedelta(days=30)
_CLOCKS_APART = timedelta(minutes=15)


@dataclass(frozen=True)
class Review:
    """A request that may be answered.

    Attributes:
        file: as it came.
        sha256: of that file, in hex.
        site: who renews, as listed; None for a newcomer, whose fingerprint a person has to compare.
        is_repeated: this very request was answered before, and is answered in the same terms again.
    """

    file: bytes
    request: JoinRequest
    sha256: str
    site: Site | None
    is_repeated: bool

    @property
    def needs_call(self) -> bool:
        """Whether only a telephone call tells who asks."""
        return self.request.site is None


def review(coordinator: Coordinator, file: bytes, now: datetime) -> Review:
    """Check a request's file.

    Raises:
        EnrolmentRefused: malformed, changed, too old, replayed, of a revoked site, or with a name or key
            that is another's.
    """
    sites = Sites(coordinator.folder)
    request, _ = read_request(file, lambda site: _keys_of(sites, site, now))
    sha256 = hashlib.sha256(file).hexdigest()
    if not now - _OLDEST_REQUEST <= request.made <= now + _CLOCKS_APART:
        raise EnrolmentRefused(
            f"The request was made at {spelled(request.made)}, not within the last 30 days: make a new one, "
            "and compare the clocks of both hosts."
        )
    site = sites.find(request.site) if request.site is not None else sites.by_key(request.signing.keyid)
    is_repeated = site is not None and site.request == sha256
    if not is_repeated:
        _refuse_taken(sites, request, site)
        _refuse_contradiction(request, site)
    return Review(file, request, sha256, site, is_repeated)


def answer(
    coordinator: Coordinator,
    seen: Review,
    read_out: str | None,
    now: datetime,
    user: str,
    overlap: timedelta = SITE_OVERLAP,
) -> bytes:
    """Enrol the newcomer, or renew the site, and return the answer's file.

    Args:
        read_out: the fingerprint that the hospital read out by telephone; needed for a newcomer.
        overlap: for how long a renewing site's earlier keys and certificate go on.

    Raises:
        EnrolmentRefused: the fingerprint is not the request's.
        LedgerRefused, OutputRefused: the log or the list cannot be written.
    """
    request = seen.request
    if seen.needs_call and (read_out is None or not same_fingerprint(read_out, request.fingerprint)):
        raise EnrolmentRefused(
            f"The fingerprint of this request is {request.fingerprint}, which is not what was read out: it "
            "may be another's. Ask the hospital to send it again."
        )
    with coordinator.lock:
        seen = review(coordinator, seen.file, now)  # somebody may have revoked the site since
        stored = coordinator.folder / "answers" / f"{seen.sha256}.json"
        if seen.is_repeated and stored.exists():
            return stored.read_bytes()
        site, given = _enrolled(coordinator, seen, now, overlap)
        _note(coordinator, site, seen, user)
        Sites(coordinator.folder).put(site)
        file = given.signed(coordinator.signer(now))
        write_atomically(stored, file, 0o600)
    return file


def revoke(coordinator: Coordinator, id_or_name: str, now: datetime, user: str) -> Site:
    """Let a site in no more: its certificates, its node's keys and its signatures all end.

    Raises:
        EnrolmentRefused: there is no such site, or it is revoked already.
    """
    with coordinator.lock:
        sites = Sites(coordinator.folder)
        site = sites.find(id_or_name)
        if site.revoked is not None:
            raise EnrolmentRefused(f"{site.id} was revoked at {spelled(site.revoked)} already.")
        coordinator.note("revoked", user, site=site.id, name=site.name)
        revoked = dataclasses.replace(site, revoked=now)
        sites.put(revoked)
    return revoked


def _keys_of(sites: Sites, id: str, now: datetime) -> list[TrustedKey]:
    site = sites.find(id)
    if site.revoked is not None:
        raise EnrolmentRefused(
            f"{id} was revoked at {spelled(site.revoked)}: it can only join anew, with new keys."
        )
    return site.keys(now)


def _refuse_taken(sites: Sites, request: JoinRequest, site: Site | None) -> None:
    """No name, signing key or node's key belongs to two, whether or not one of them was revoked."""
    named = [one for one in sites.active() if one.name == request.name]
    owners = [*named, sites.by_key(request.signing.keyid), sites.by_node(request.node.decode())]
    for owner in owners:
        if owner is not None and (site is None or owner.id != site.id):
            raise EnrolmentRefused(
                f"The request's name or one of its keys is already that of {owner.id} "
                f"({unmistakable(owner.name)}): choose another name, or make new keys."
            )


def _refuse_contradiction(request: JoinRequest, site: Site | None) -> None:
    if site is None:
        return
    if request.site is None:
        raise EnrolmentRefused(
            f"This key is that of {site.id} already: the hospital runs `fedward hospital renew`, or, once "
            f"`fedward coordinator revoke {site.id}` was run, `fedward hospital join` again."
        )
    if request.made <= site.requested:
        raise EnrolmentRefused(f"{site.id} has made a newer request since: ask for that.")
    if (request.name, request.num_examples) != (site.name, site.num_examples):
        raise EnrolmentRefused(
            f"{site.id} declared another name or count when it joined: both are frozen; to declare others "
            "it is revoked and joins anew."
        )


def _enrolled(
    coordinator: Coordinator, seen: Review, now: datetime, overlap: timedelta
) -> tuple[Site, Answer]:
    request, before = seen.request, seen.site
    id = before.id if before is not None else f"site-{request.signing.keyid[:16]}"
    issuer = coordinator.site_issuer(now)
    certificate = client_certificate(issuer, request_of(request.tls), id, now, CERTIFICATE_LIFETIME)
    issued = Issued(
        certificate.serial_number, digest(certificate), coordinator.newest, certificate.not_valid_after_utc
    )
    ends = now + overlap
    site = Site(
        id=id,
        name=request.name,
        num_examples=request.num_examples,
        requested=request.made,
        request=seen.sha256,
        signing=succeed(before.signing if before else (), request.signing, ends),
        nodes=succeed(before.nodes if before else (), request.node.decode(), ends),
        certificates=_certificates(before, issued, now, ends),
    )
    federation = coordinator.federation(now)
    return site, Answer(id, site.name, site.num_examples, seen.sha256, certificate, federation)


def _certificates(
    before: Site | None, issued: Issued, now: datetime, ends: datetime
) -> tuple[Dated[Issued], ...]:
    kept = [one for one in (before.certificates if before else ()) if now < one.value.expires]
    return succeed(kept, issued, ends)


def _note(coordinator: Coordinator, site: Site, seen: Review, user: str) -> None:
    coordinator.note(
        "renewed" if seen.request.site else "joined",
        user,
        site=site.id,
        name=site.name,
        num_examples=site.num_examples,
        request=seen.sha256,
        certificate=site.certificates[-1].value.sha256,
        signing=seen.request.signing.keyid,
    )
