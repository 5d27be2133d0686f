"""Whom a site of a federation calls and believes, and how people compare fingerprints."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from fedward.common.certificates import digest, host_name
from fedward.common.errors import EnrolmentRefused
from fedward.common.instants import parsed, spelled
from fedward.common.key_files import certificate_of, pem
from fedward.common.trust import TrustedKey, key_of

_SPOKEN_DIGITS = 32  # 128 bits: nobody finds a second request with the same


@dataclass(frozen=True)
class Generation:
    """An authority and a signing key of the coordinator's, which come and go together.

    Attributes:
        until: from when on neither counts any more; None while no successor is named.
    """

    authority: x509.Certificate
    signing: TrustedKey
    until: datetime | None

    def holds(self, now: datetime) -> bool:
        """Whether it still counts."""
        return self.until is None or now < self.until

    def entry(self) -> dict[str, Any]:
        """Plain JSON."""
        until = None if self.until is None else spelled(self.until)
        return {"authority": pem(self.authority).decode(), "signing": self.signing.entry(), "until": until}

    @classmethod
    def of(cls, entry: Any) -> "Generation":
        """The inverse of `entry`.

        Raises:
            EnrolmentRefused, TrustRefused, ValueError, KeyError, TypeError: it is no such entry.
        """
        until = None if entry["until"] is None else parsed(entry["until"])
        return cls(
            certificate_of(entry["authority"].encode("ascii")), key_of(entry["signing"], "an answer"), until
        )

    @property
    def fingerprint(self) -> str:
        """By which people know the coordinator: of its authority and its signing key together."""
        return spoken(hashlib.sha256(f"{digest(self.authority)}{self.signing.keyid}".encode()).hexdigest())


@dataclass(frozen=True)
class Federation:
    """Whom a site calls and believes.

    Attributes:
        coordinator: a name for people.
        host: of the coordinator's gateway, which its certificate must name.
        port: where the gateway listens.
        generations: oldest first, at least one.
    """

    coordinator: str
    host: str
    port: int
    generations: tuple[Generation, ...]

    def current(self, now: datetime) -> tuple[Generation, ...]:
        """Those generations that still count.

        Raises:
            EnrolmentRefused: none does.
        """
        found = tuple(one for one in self.generations if one.holds(now))
        if not found:
            raise EnrolmentRefused(
                "Every key of the coordinator that this site knows was rotated out: ask it how to join again."
            )
        return found

    def retired(self, now: datetime) -> frozenset[str]:
        """Key ids of those that were rotated out, to refuse them by that name."""
        return frozenset(one.signing.keyid for one in self.generations if not one.holds(now))

    def entry(self) -> dict[str, Any]:
        """Plain JSON."""
        generations = [one.entry() for one in self.generations]
        return {
            "coordinator": self.coordinator,
            "host": self.host,
            "port": self.port,
            "generations": generations,
        }

    @classmethod
    def of(cls, entry: Any) -> "Federation":
        """The inverse of `entry`.

        Raises:
            EnrolmentRefused, TrustRefused, ValueError, KeyError, TypeError: it is no such entry.
        """
        name, host, port = entry["coordinator"], entry["host"], entry["port"]
        generations = tuple(Generation.of(one) for one in entry["generations"])
        host_name(host)
        is_port = isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536
        if not (is_port and isinstance(name, str) and 0 < len(name) <= 200 and generations):
            raise ValueError("a name, a port or the generations are not what they must be")
        return cls(name, host, port, generations)


def spoken(hexadecimal: str) -> str:
    """A digest's first 128 bits in groups of four digits, to be read out."""
    digits = hexadecimal[:_SPOKEN_DIGITS]
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def same_fingerprint(read_out: str, own: str) -> bool:
    """Whether somebody typed `own`, in whatever grouping and case."""
    return "".join(read_out.split()).replace("-", "").lower() == own.replace(" ", "")
