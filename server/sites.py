"""The coordinator's list of sites: who they are, which keys and certificates count, until when.

``sites.json`` is written whole, synced and under the coordinator's lock. What a renewal replaces (a
certificate, a node's key, a signing key) goes on for an overlap, so that a site changes over when it can.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

from fedward.common.errors import EnrolmentRefused
from fedward.common.files import canonical_json, parse_canonical, read_bounded, write_atomically
from fedward.common.instants import parsed, spelled
from fedward.common.trust import TrustedKey, key_of

SITES = "sites.json"
_LIMIT_BYTES = 64 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Dated(Generic[T]):
    """Something that counts until a moment, or for good."""

    value: T
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it still counts."""
        return self.until is None or now < self.until


@dataclass(frozen=True)
class Issued:
    """A certificate that was given to a site.

    Attributes:
        serial: its number.
        sha256: of its DER, in hex.
        generation: of the coordinator's keys that the site was told of with it.
        expires: when.
    """

    serial: int
    sha256: str
    generation: int
    expires: datetime


@dataclass(frozen=True)
class Site:
    """A hospital, as the coordinator knows it.

    Attributes:
        id: ``site-`` and 16 hex digits; the subject of its certificates is CN=id.
        num_examples: declared.
        requested: when its last request was made; an older one is refused.
        request: SHA-256, in hex, of that request's file.
        signing: keys of its messages, newest last.
        nodes: public keys (PEM) of its SuperNode, newest last.
        certificates: newest last.
        revoked: when, or None.
    """

    id: str
    name: str
    num_examples: int
    requested: datetime
    request: str
    signing: tuple[Dated[TrustedKey], ...]
    nodes: tuple[Dated[str], ...]
    certificates: tuple[Dated[Issued], ...]
    revoked: datetime | None = None

    def keys(self, now: datetime) -> list[TrustedKey]:
        """Keys whose signatures are this site's now; none of a revoked site."""
        return [one.value for one in self.signing if one.holds(now) and self.revoked is None]

    def node_keys(self, now: datetime) -> list[str]:
        """Keys (PEM) that its SuperNode may show now; none of a revoked site."""
        return [one.value for one in self.nodes if one.holds(now) and self.revoked is None]

    def revoked_serials(self, now: datetime) -> list[int]:
        """Serial numbers of certificates that must not be let in, though they have not expired."""
        ended = [one.value for one in self.certificates if self.revoked or not one.holds(now)]
        return [one.serial for one in ended if now < one.expires + timedelta(days=1)]


class Sites:
    """The list in a coordinator's folder. Whoever changes it holds the coordinator's lock."""

    def __init__(self, folder: Path) -> None:
        """Read the list, which is empty where there is no file.

        Raises:
            EnrolmentRefused: damaged.
        """
        self._path = folder / SITES
        self._sites: dict[str, Site] = {}
        if self._path.exists():
            self._sites = {site.id: site for site in self._read()}

    def __iter__(self) -> Any:
        """Every site that was ever enrolled, in order of enrolment."""
        return iter(tuple(self._sites.values()))

    def active(self) -> list[Site]:
        """Those that are not revoked."""
        return [site for site in self._sites.values() if site.revoked is None]

    def find(self, id_or_name: str) -> Site:
        """A site by its id, or an active one by its name.

        Raises:
            EnrolmentRefused: there is none.
        """
        if id_or_name in self._sites:
            return self._sites[id_or_name]
        named = [site for site in self.active() if site.name == id_or_name]
        if not named:
            raise EnrolmentRefused(
                f"There is no site {id_or_name!r} here: `fedward coordinator sites` lists them."
            )
        return named[0]

    def by_key(self, keyid: str) -> Site | None:
        """The site that ever had this signing key."""
        return next((s for s in self._sites.values() if keyid in {k.value.keyid for k in s.signing}), None)

    def by_node(self, node: str) -> Site | None:
        """The site that ever had this node's key."""
        return next((s for s in self._sites.values() if node in {k.value for k in s.nodes}), None)

    def put(self, site: Site) -> None:
        """Add or replace a site, synced.

        Raises:
            OutputRefused: the list cannot be written; it is as it was.
        """
        sites = {**self._sites, site.id: site}
        write_atomically(self._path, canonical_json([_entry(one) for one in sites.values()]), 0o600)
        self._sites = sites

    def _read(self) -> list[Site]:
        try:
            found = parse_canonical(read_bounded(self._path, _LIMIT_BYTES, refusal=EnrolmentRefused))
            return [_site(entry) for entry in found]
        except (ValueError, KeyError, TypeError) as error:
            raise EnrolmentRefused(f"{self._path} is damaged: put back its newest copy.") from error


def succeed(old: Iterable[Dated[T]], new: T, ends: datetime) -> tuple[Dated[T], ...]:
    """`old` and then `new`, which counts for good; what counted so before ends at `ends`, if not sooner."""
    others = (one for one in old if one.value != new)
    ended = (dataclasses.replace(one, until=min(one.until or ends, ends)) for one in others)
    return (*ended, Dated(new))


def _entry(site: Site) -> dict[str, Any]:
    return {
        "id": site.id,
        "name": site.name,
        "num_examples": site.num_examples,
        "requested": spelled(site.requested),
        "request": site.request,
        "signing": [[one.value.entry(), _when(one.until)] for one in site.signing],
        "nodes": [[one.value, _when(one.until)] for one in site.nodes],
        "certificates": [[_issued_entry(one.value), _when(one.until)] for one in site.certificates],
        "revoked": _when(site.revoked),
    }


def _issued_entry(issued: Issued) -> dict[str, str | int]:
    # The number has 160 bits, which not every reader of JSON keeps.
    return {
        "serial": f"{issued.serial:x}",
        "sha256": issued.sha256,
        "generation": issued.generation,
        "expires": spelled(issued.expires),
    }


def _site(fields: Any) -> Site:
    return Site(
        id=fields["id"],
        name=fields["name"],
        num_examples=fields["num_examples"],
        requested=parsed(fields["requested"]),
        request=fields["request"],
        signing=tuple(Dated(key_of(value, SITES), _moment(until)) for value, until in fields["signing"]),
        nodes=tuple(Dated(str(value), _moment(until)) for value, until in fields["nodes"]),
        certificates=tuple(Dated(_issued(value), _moment(until)) for value, until in fields["certificates"]),
        revoked=_moment(fields["revoked"]),
    )


def _issued(fields: Any) -> Issued:
    return Issued(
        int(fields["serial"], 16), fields["sha256"], int(fields["generation"]), parsed(fields["expires"])
    )


def _when(moment: datetime | None) -> str | None:
    return None if moment is None else spelled(moment)


def _moment(text: Any) -> datetime | None:
    return None if text is None else parsed(text)
