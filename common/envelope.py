"""The envelope of every message between a coordinator and a hospital: addressed, numbered, signed, sealed.

    magic (8) | length of the header (4, big-endian) | header | body | Ed25519 (64) | ML-DSA-65 (3309)

The header is that of `fedward.common.envelope_header`. The body is the payload, or, sealed,
`fedward.common.sealing` of 32 random bytes and the payload: the header's `sha256` is over what is sealed, and
without the random bytes whoever guesses a payload could check the guess. Both signatures are of one key and
cover the header and the body's SHA-256 under a type of their own (DSSE's PAE), so that no signature of a
release or an enrolment passes for one of a message. What each field is against stands in docs/messages.md.

An envelope is never made twice for the same bytes (ML-DSA-65 and sealing are randomised): an answer is stored
as it is, and enclosed anew each time that it leaves.
"""

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedward.common.envelope_header import MOST_PAYLOAD_BYTES, Address, Header, malformed
from fedward.common.errors import (
    EnvelopeExpired,
    EnvelopeMisdirected,
    EnvelopeRefused,
    SenderRefused,
)
from fedward.common.numbers import IN_ORDER, Arrival, Numbers
from fedward.common.sealing import SEAL_BYTES, PublicSealingKey, SealingKey
from fedward.common.signing import Signer, pre_authentication
from fedward.common.trust import TrustedKey

MAGIC = b"FEDWARD\x01"
PAYLOAD_TYPE = "application/vnd.fedward.envelope"
CLOCK_TOLERANCE_SECONDS = 600  # two sites' clocks may be ten minutes apart
LONGEST_LIFE_SECONDS = 31 * 24 * 3600
_MOST_HEADER_BYTES = 4096
_LENGTH_BYTES = 4
_ED25519_BYTES, _MLDSA65_BYTES = 64, 3309  # RFC 8032; FIPS 204, table 2
_SIGNATURE_BYTES = _ED25519_BYTES + _MLDSA65_BYTES
_SALT_BYTES = 32
MOST_ENVELOPE_BYTES = (
    len(MAGIC)
    + _LENGTH_BYTES
    + _MOST_HEADER_BYTES
    + _SALT_BYTES
    + SEAL_BYTES
    + MOST_PAYLOAD_BYTES
    + _SIGNATURE_BYTES
)


@dataclass(frozen=True)
class Expected:
    """What a receiver is waiting for.

    Attributes:
        receiver: its own name.
        kinds: the kinds of message that it takes here, and whether one must be sealed.
        study, server_round, sender: None where they are not known before the payload is read; then the reader
            compares the payload with `Opened.header`.
    """

    receiver: str
    kinds: Mapping[str, bool]
    study: str | None = None
    server_round: int | None = None
    sender: str | None = None


@dataclass(frozen=True)
class Opened:
    """A message that is proven.

    Attributes:
        header: verified.
        payload: bytes as they were enclosed.
        arrival: how it stands to earlier ones.
    """

    header: Header
    payload: bytes
    arrival: Arrival


def enclose(payload: bytes, address: Address, signer: Signer, to: PublicSealingKey | None = None) -> bytes:
    """The envelope of `payload`, signed by `signer`, and sealed for the holder of `to` where one is named.

    Raises:
        EnvelopeRefused: the payload is too large, or a field of the address out of range.
    """
    if len(payload) > MOST_PAYLOAD_BYTES:
        raise EnvelopeRefused(f"A message has at most {MOST_PAYLOAD_BYTES} bytes, not {len(payload)}.")
    inner = payload if to is None else secrets.token_bytes(_SALT_BYTES) + payload
    digest, sealed_to = hashlib.sha256(inner).hexdigest(), "" if to is None else to.keyid
    made = Header(address, signer.name, signer.public().keyid, sealed_to, len(payload), digest)
    header = made.to_bytes()
    if len(header) > _MOST_HEADER_BYTES or Header.from_bytes(header) != made:
        raise malformed("its header does not hold what was named")
    body = inner if to is None else to.seal(inner, header)
    signatures = signer.sign_as(PAYLOAD_TYPE, _signed(header, body))
    return b"".join([MAGIC, len(header).to_bytes(_LENGTH_BYTES, "big"), header, body, *signatures])


def open_envelope(
    data: bytes,
    expected: Expected,
    *,
    trust: Sequence[TrustedKey],
    now: float,
    numbers: Numbers,
    retired: Collection[str] = (),
    accepted: frozenset[Arrival] = IN_ORDER,
    sealing_keys: Sequence[SealingKey] = (),
    tolerance: float = CLOCK_TOLERANCE_SECONDS,
) -> Opened:
    """The message in `data`, if all of it is as it should be; its number is taken last, and synced.

    Args:
        data: the whole envelope.
        expected: what the receiver is waiting for.
        trust: keys that the receiver believes, each under its owner's name.
        now: unix seconds.
        numbers: what was taken before.
        retired: keyids that were given up; they are refused even where `trust` still holds them.
        accepted: how the message may stand to earlier ones.
        sealing_keys: the receiver's.
        tolerance: seconds for which clocks may differ.

    Raises:
        EnvelopeRefused: malformed, cut, too large, changed in any byte, or not sealed where it must be.
        SenderRefused: signed by an unknown or retired key, or under another's name.
        EnvelopeMisdirected: for another receiver, study, round or kind.
        EnvelopeExpired: past its expiry, or good for longer than `LONGEST_LIFE_SECONDS`.
        EnvelopeReplayed: see `Numbers.take`.
    """
    parts = _split(data)
    _require_signed(parts, trust, retired)
    _require_expected(parts.header, expected)
    _require_in_time(parts.header, now, tolerance)
    payload = _payload(parts, sealing_keys)
    digest = hashlib.sha256(_signed(parts.spelled, parts.body)).hexdigest()
    address = parts.header.address
    arrival = numbers.take(parts.header.signed_by, address.number, digest, accepted)
    return Opened(parts.header, payload, arrival)


def unproven_header(data: bytes) -> Header:
    """The header of an envelope that is not verified: for a log line or a route, never for a decision.

    Raises:
        EnvelopeRefused: malformed.
    """
    return _split(data).header


class _Parts(NamedTuple):
    header: Header
    spelled: bytes
    body: memoryview
    ed25519: bytes
    mldsa65: bytes


def _split(data: bytes) -> _Parts:
    if len(data) > MOST_ENVELOPE_BYTES:
        raise malformed(f"it is over {MOST_ENVELOPE_BYTES} bytes")
    start = len(MAGIC) + _LENGTH_BYTES
    if data[: len(MAGIC)] != MAGIC or len(data) < start:
        raise malformed("it does not begin as an envelope of this version")
    length = int.from_bytes(data[len(MAGIC) : start], "big")
    if length > min(_MOST_HEADER_BYTES, len(data) - start):
        raise malformed("its header is cut or too long")
    header = Header.from_bytes(data[start : start + length])
    end = len(data) - _SIGNATURE_BYTES
    body_size = header.size + (SEAL_BYTES + _SALT_BYTES if header.sealed_to else 0)
    if end - start - length != body_size:
        raise malformed("it is cut, or longer than its header says")
    return _Parts(
        header,
        data[start : start + length],
        memoryview(data)[start + length : end],
        data[end : end + _ED25519_BYTES],
        data[end + _ED25519_BYTES :],
    )


def _signed(header: bytes, body: bytes | memoryview) -> bytes:
    """What the signatures are of; the digest's length is fixed, so there is one way to read it."""
    return header + hashlib.sha256(body).digest()


def _require_signed(parts: _Parts, trust: Sequence[TrustedKey], retired: Collection[str]) -> None:
    header = parts.header
    if header.signed_by in retired:
        raise SenderRefused(
            f"A message from {header.sender!r} is signed with key {header.signed_by[:16]}, which was given "
            "up: its sender must use its new key."
        )
    known = [key for key in trust if key.keyid == header.signed_by]
    if not known:
        raise SenderRefused(
            f"A message from {header.sender!r} is signed with key {header.signed_by[:16]}, which is not "
            "enrolled here: enrol it, or fetch the study's new trust file."
        )
    message = pre_authentication(PAYLOAD_TYPE, _signed(parts.spelled, parts.body))
    if not known[0].signed(message, parts.ed25519, parts.mldsa65):
        raise EnvelopeRefused("A message's signature does not verify: it was changed; ask for it again.")
    if known[0].name != header.sender:
        raise SenderRefused(
            f"A message under the name {header.sender!r} is signed with the key of {known[0].name!r}: a "
            "sender writes under its own name only."
        )


def _require_expected(header: Header, expected: Expected) -> None:
    address = header.address
    if address.kind not in expected.kinds:
        raise EnvelopeMisdirected(
            f"A message of kind {address.kind!r} came where {', '.join(sorted(expected.kinds))} is expected."
        )
    pairs: dict[str, tuple[object, object]] = {
        "receiver": (address.receiver, expected.receiver),
        "study": (address.study, expected.study),
        "round": (address.server_round, expected.server_round),
        "sender": (header.sender, expected.sender),
    }
    for name, (found, wanted) in pairs.items():
        if wanted is not None and found != wanted:
            raise EnvelopeMisdirected(f"A message's {name} is {found!r}; expected is {wanted!r}.")
    if expected.kinds[address.kind] and not header.sealed_to:
        raise EnvelopeRefused(f"A message of kind {address.kind!r} must be sealed; its sender must seal it.")


def _require_in_time(header: Header, now: float, tolerance: float) -> None:
    expires = header.address.expires
    if now > expires + tolerance:
        raise EnvelopeExpired(
            f"A message expired {now - expires:.0f} s ago by this clock: its sender must send it anew; where "
            "messages expire again and again, compare the clocks."
        )
    if expires > now + LONGEST_LIFE_SECONDS + tolerance:
        raise EnvelopeExpired(
            f"A message asks to be believed for more than {LONGEST_LIFE_SECONDS // 86400} days: its sender "
            "must send it with a nearer expiry, or set its clock."
        )


def _payload(parts: _Parts, sealing_keys: Sequence[SealingKey]) -> bytes:
    header = parts.header
    inner = bytes(parts.body)
    if header.sealed_to:
        keys = [key for key in sealing_keys if key.public().keyid == header.sealed_to]
        if not keys:
            raise EnvelopeRefused(
                f"A message is sealed to key {header.sealed_to[:16]}, which is not one of this receiver's: "
                "its sender must fetch the new sealing key."
            )
        inner = keys[0].unseal(inner, parts.spelled)
    if hashlib.sha256(inner).hexdigest() != header.sha256:
        raise EnvelopeRefused("A message's payload is not the one that its header names; ask for it again.")
    return inner[_SALT_BYTES:] if header.sealed_to else inner
