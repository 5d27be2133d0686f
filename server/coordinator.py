"""The coordinator's own folder: its name, address, authorities and signing keys, generation by generation.

    coordinator.json          name, host, port, listen, superlink_port, generations [{number, until}]
    authority/1/              ca.key, ca.pem, signing-key.json
    loopback/                 superlink.key, superlink.pem
    sites.json  enrolment.jsonl  answers/  roles.toml  releases/  gateway/

Keys rotate without everyone at once: `rotate` makes a new generation beside the old one, whose end is set.
Until then both count. What sites must believe is still signed by the old one, which all of them know; what
they bring may come from either; and each site learns of the new one with its next renewal.
"""

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fedward.common import roles
from fedward.common.certificates import host_name, loopback_identity, new_authority
from fedward.common.errors import EnrolmentRefused
from fedward.common.federation import Federation, Generation
from fedward.common.files import canonical_json, make_folder, parse_canonical, read_bounded, write_atomically
from fedward.common.flower_tools import SUPERLINK_PORT
from fedward.common.instants import parsed, spelled
from fedward.common.key_files import Identity
from fedward.common.ledger import Ledger
from fedward.common.locks import FileLock
from fedward.common.roles import AUDITOR, COORDINATOR, write_roles
from fedward.common.signing import Signer, create_keys

PROFILE, LOG = "coordinator.json", "enrolment.jsonl"
COORDINATOR_STATE = "FEDWARD_COORDINATOR_STATE"  # in the environment of its ServerApps
LOOPBACK_FOLDER, RELEASES = "loopback", "releases"
AUTHORITY_LIFETIME = timedelta(days=3650)
DEFAULT_OVERLAP = timedelta(days=90)
_LIMIT_BYTES = 1 << 16
_PURPOSE = "enrolment"


@dataclass(frozen=True)
class Address:
    """Where sites call, and where the coordinator's own processes listen.

    Attributes:
        host: DNS name or address by which sites call the gateway; its certificate names it.
        port: of the gateway, the only open one.
        listen: the address it is bound to; ``*`` for all of the host's.
        superlink_port: of SuperLink, on loopback.
    """

    host: str
    port: int
    listen: str = "*"
    superlink_port: int = SUPERLINK_PORT

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        host_name(self.host)
        if self.listen != "*":
            host_name(self.listen)
        if not all(0 < port < 65536 for port in (self.port, self.superlink_port)):
            raise EnrolmentRefused("A port is a number from 1 to 65535.")


@dataclass(frozen=True)
class _Term:
    """A generation's number, and when it ends."""

    number: int
    until: datetime | None

    def holds(self, now: datetime) -> bool:
        return self.until is None or now < self.until


class Coordinator:
    """A coordinator's folder, opened."""

    def __init__(self, folder: Path) -> None:
        """Open what `create` made.

        Raises:
            EnrolmentRefused: it is no coordinator's folder, or is damaged.
        """
        self.folder = folder
        self.lock = FileLock(folder / "coordinator.lock")
        path = folder / PROFILE
        if not path.exists():
            raise EnrolmentRefused(
                f"{folder} holds no coordinator: make one with `fedward coordinator init`."
            )
        try:
            fields = parse_canonical(read_bounded(path, _LIMIT_BYTES, refusal=EnrolmentRefused))
            self.name = str(fields["name"])
            self.address = Address(**fields["address"])
            self._terms = tuple(_term(one) for one in fields["generations"])
        except (ValueError, KeyError, TypeError) as error:
            raise EnrolmentRefused(f"{path} is damaged: put back its newest copy.") from error

    @classmethod
    def create(cls, folder: Path, name: str, address: Address, now: datetime) -> "Coordinator":
        """Make a folder (mode 0700) with a first authority, signing key and log.

        Raises:
            EnrolmentRefused: there is a coordinator already.
            OutputRefused: it cannot be written.
        """
        if (folder / PROFILE).exists():
            raise EnrolmentRefused(f"{folder} holds a coordinator already: name another --state folder.")
        for part in (folder, folder / RELEASES, folder / "answers", folder / LOOPBACK_FOLDER):
            make_folder(part, 0o700)
        loopback = loopback_identity(now, AUTHORITY_LIFETIME)
        place = folder / LOOPBACK_FOLDER
        loopback.save(place / "superlink.key", place / "superlink.pem")
        if not (folder / LOG).exists():  # of a crash before there was a coordinator
            Ledger.create(folder / LOG, _PURPOSE)
        user = roles.acting_user()
        write_roles(folder, {COORDINATOR: user, AUDITOR: user})
        _make_generation(folder, name, 1, now)
        _save(folder, name, address, (_Term(1, None),))  # last: without it there is no coordinator
        return cls(folder)

    def federation(self, now: datetime) -> Federation:
        """Whom sites are to believe from `now` on."""
        generations = tuple(self._generation(term) for term in self._current(now))
        return Federation(self.name, self.address.host, self.address.port, generations)

    def signer(self, now: datetime) -> Signer:
        """Signs what every site must believe: the oldest that counts, which all of them know."""
        return Signer.load(self._place(self._current(now)[0]))

    def gateway_issuer(self, now: datetime) -> Identity:
        """Issues the gateway's certificate: the oldest that counts, which all sites know."""
        return self._authority(self._current(now)[0])

    def site_issuer(self, now: datetime) -> Identity:
        """Issues sites' certificates: the newest."""
        return self._authority(self._current(now)[-1])

    def issuers(self, now: datetime) -> list[Identity]:
        """All authorities that count."""
        return [self._authority(term) for term in self._current(now)]

    def is_rotating(self, now: datetime) -> bool:
        """Whether two generations count."""
        return len(self._current(now)) > 1

    @property
    def newest(self) -> int:
        """The newest generation's number: who got an answer since it was made knows of it."""
        return self._terms[-1].number

    def rotate(self, now: datetime, user: str, overlap: timedelta = DEFAULT_OVERLAP) -> None:
        """Make a new generation; the present one ends after `overlap`. Whoever calls holds the lock.

        Raises:
            EnrolmentRefused: the one before it still counts.
        """
        if self.is_rotating(now):
            ends = self._current(now)[0].until
            raise EnrolmentRefused(
                f"The keys are being rotated already: the old ones end {ends and spelled(ends)}."
            )
        number = self._terms[-1].number + 1
        _make_generation(self.folder, self.name, number, now)
        self.note("rotated", user, generation=number, overlap_days=overlap / timedelta(days=1))
        ended = dataclasses.replace(self._terms[-1], until=now + overlap)
        terms = (*self._terms[:-1], ended, _Term(number, None))
        _save(self.folder, self.name, self.address, terms)
        self._terms = terms

    def note(self, kind: str, user: str, **what: Any) -> None:
        """Write to the log, synced, before something is done.

        Raises:
            LedgerRefused: it does not verify, or the disk does not take it; then nothing must be done.
        """
        Ledger.open(self.folder / LOG).append(kind, {"user": user, **what})

    def _current(self, now: datetime) -> list[_Term]:
        return [term for term in self._terms if term.holds(now)]

    def _place(self, term: _Term) -> Path:
        return _place(self.folder, term.number)

    def _authority(self, term: _Term) -> Identity:
        return Identity.load(self._place(term) / "ca.key", self._place(term) / "ca.pem")

    def _generation(self, term: _Term) -> Generation:
        signing = Signer.load(self._place(term)).public()
        return Generation(self._authority(term).certificate, signing, term.until)


def _place(folder: Path, number: int) -> Path:
    return folder / "authority" / str(number)


def _make_generation(folder: Path, name: str, number: int, now: datetime) -> None:
    """Keys that no `coordinator.json` names yet: those of a crash before it did are kept and used."""
    place = _place(folder, number)
    make_folder(place.parent, 0o700)
    make_folder(place, 0o700)
    signer = Signer.load(place) if (place / "signing-key.json").exists() else create_keys(place, name)
    # The name of an authority must not occur twice: a list of revoked certificates is found by it.
    authority = f"Fedward authority {number} {signer.public().keyid[:16]}"
    new_authority(authority, now, AUTHORITY_LIFETIME).save(place / "ca.key", place / "ca.pem")


def _save(folder: Path, name: str, address: Address, terms: tuple[_Term, ...]) -> None:
    generations = [
        {
            "number": term.number,
            "until": None if term.until is None else spelled(term.until),
        }
        for term in terms
    ]
    fields = {"name": name, "address": dataclasses.asdict(address), "generations": generations}
    write_atomically(folder / PROFILE, canonical_json(fields), 0o600)


def _term(fields: Any) -> _Term:
    until = None if fields["until"] is None else parsed(fields["until"])
    return _Term(int(fields["number"]), until)
