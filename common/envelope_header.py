"""An envelope's header: to whom, about what, under which number, until when, and of which bytes.

    {"expires": UNIX, "kind": "update", "number": N, "receiver": NAME, "round": 3,
     "schema": "fedward.envelope/1", "sealed_to": KEYID or "", "sender": NAME, "sha256": HEX,
     "signed_by": KEYID, "size": BYTES, "study": NAME}

It is canonical JSON with exactly these fields, each within its range.
"""

import re
from dataclasses import dataclass
from typing import Any

from fedward.common.digests import is_digest
from fedward.common.errors import EnvelopeRefused
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.numbers import HIGHEST_NUMBER

SCHEMA = "fedward.envelope/1"
MOST_PAYLOAD_BYTES = 1 << 28
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_LONGEST_NAME = 200  # characters, as in a study's settings
_MOST_ROUND = 100_000


@dataclass(frozen=True)
class Address:
    """What a message is about and for whom.

    Attributes:
        study: the study's name; empty where a message belongs to none.
        server_round: from 1; 0 where a message belongs to no round.
        kind: of message, for example ``train`` or ``update``.
        receiver: the name under which the receiver knows itself.
        number: of `NextNumber`: above all that this key signed before.
        expires: unix seconds.
    """

    study: str
    server_round: int
    kind: str
    receiver: str
    number: int
    expires: int


@dataclass(frozen=True)
class Header:
    """An envelope's header. Of an unopened envelope nothing of it is proven.

    Attributes:
        address: see there.
        sender: the name under which the receiver's trust file holds the key.
        signed_by: keyid of the key.
        sealed_to: keyid of the sealing key, or empty.
        size: of the payload, in bytes.
        sha256: over the payload, in hex; of a sealed one with 32 random bytes before it.
    """

    address: Address
    sender: str
    signed_by: str
    sealed_to: str
    size: int
    sha256: str

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        where = self.address
        return canonical_json(
            {
                "schema": SCHEMA,
                "study": where.study,
                "round": where.server_round,
                "kind": where.kind,
                "sender": self.sender,
                "receiver": where.receiver,
                "number": where.number,
                "expires": where.expires,
                "size": self.size,
                "sha256": self.sha256,
                "signed_by": self.signed_by,
                "sealed_to": self.sealed_to,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Header":
        """The inverse of `to_bytes`.

        Raises:
            EnvelopeRefused: another spelling, other fields, or a value out of its range.
        """
        try:
            fields = parse_canonical(data)
        except ValueError as error:
            raise malformed(f"its header: {error}") from error
        if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
            raise malformed("its header has other fields than this version's")
        for name, holds in _FIELDS.items():
            if not holds(fields[name]):
                raise malformed(f"its field {name} is out of range")
        return _header_of(fields)


def malformed(why: str) -> EnvelopeRefused:
    """The refusal of an envelope that is none."""
    return EnvelopeRefused(f"An envelope is malformed: {why}; its sender must send it again.")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST_NAME


def _is_whole(value: object, highest: int) -> bool:
    return type(value) is int and 0 <= value <= highest


_FIELDS: dict[str, Any] = {
    "schema": lambda value: value == SCHEMA,
    "study": lambda value: value == "" or _is_name(value),
    "round": lambda value: _is_whole(value, _MOST_ROUND),
    "kind": lambda value: isinstance(value, str) and _KIND.fullmatch(value) is not None,
    "sender": _is_name,
    "receiver": _is_name,
    "number": lambda value: _is_whole(value, HIGHEST_NUMBER),
    "expires": lambda value: _is_whole(value, HIGHEST_NUMBER),
    "size": lambda value: _is_whole(value, MOST_PAYLOAD_BYTES),
    "sha256": is_digest,
    "signed_by": is_digest,
    "sealed_to": lambda value: value == "" or is_digest(value),
}


def _header_of(fields: dict[str, Any]) -> Header:
    address = Address(
        study=fields["study"],
        server_round=fields["round"],
        kind=fields["kind"],
        receiver=fields["receiver"],
        number=fields["number"],
        expires=fields["expires"],
    )
    return Header(
        address,
        fields["sender"],
        fields["signed_by"],
        fields["sealed_to"],
        fields["size"],
        fields["sha256"],
    )
