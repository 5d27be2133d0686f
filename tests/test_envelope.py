"""An envelope opens for its receiver, once, in time and unchanged; anything else is refused by name."""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedward.common import envelope as envelope_module
from fedward.common.envelope import (
    CLOCK_TOLERANCE_SECONDS,
    LONGEST_LIFE_SECONDS,
    MOST_ENVELOPE_BYTES,
    PAYLOAD_TYPE,
    Expected,
    Opened,
    enclose,
    open_envelope,
    unproven_header,
)
from fedward.common.envelope_header import MOST_PAYLOAD_BYTES, Address, Header
from fedward.common.errors import (
    EnvelopeExpired,
    EnvelopeMisdirected,
    EnvelopeRefused,
    EnvelopeReplayed,
    Refusal,
    SenderRefused,
    SignatureRefused,
)
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.numbers import ANY_ORDER, Arrival, Numbers
from fedward.common.sealing import SealingKey
from fedward.common.signing import STATEMENT_TYPE, Signer, pre_authentication, verify

NOW = 1_800_000_000
PAYLOAD = b"an update, noised"
ADDRESS = Address("chest", 3, "update", "office", 7, NOW + 60)
NORTH = Signer("north", b"\x05" * 32, b"\x06" * 32)
SOUTH = Signer("south", b"\x07" * 32, b"\x08" * 32)
SEAL = SealingKey(b"\x09" * 32, b"\x0a" * 64)
OTHER_SEAL = SealingKey(b"\x0b" * 32, b"\x0c" * 64)
EXPECTED = Expected("office", {"update": True, "refusal": False})
HEADER_AT = 12  # magic and length
SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(SLOW, max_examples=200)
Open = Callable[..., Opened]


@pytest.fixture
def opening(tmp_path: Path) -> Open:
    """opening(data, **changes) -> what the office opens."""

    def call(data: bytes, expected: Expected = EXPECTED, **changes: Any) -> Opened:
        values: dict[str, Any] = {
            "trust": [SOUTH.public(), NORTH.public()],
            "now": NOW,
            "numbers": Numbers(tmp_path / "numbers"),
            "sealing_keys": [OTHER_SEAL, SEAL],
        }
        return open_envelope(data, expected, **(values | changes))

    return call


def sealed(payload: bytes = PAYLOAD, **changes: Any) -> bytes:
    return enclose(payload, dataclasses.replace(ADDRESS, **changes), NORTH, SEAL.public())


def unsealed(payload: bytes = PAYLOAD, signer: Signer = NORTH, **changes: Any) -> bytes:
    return enclose(payload, dataclasses.replace(ADDRESS, **({"kind": "refusal"} | changes)), signer)


def split(data: bytes) -> tuple[bytes, bytes]:
    """(header, body) of an envelope."""
    end = HEADER_AT + int.from_bytes(data[8:HEADER_AT], "big")
    return data[HEADER_AT:end], data[end : -(64 + 3309)]


def forged(data: bytes, signer: Signer = NORTH, body: bytes | None = None, **fields: Any) -> bytes:
    """The envelope with other header fields, signed anew: what an insider with a trusted key can make."""
    header, old_body = split(data)
    header = canonical_json({**parse_canonical(header), **fields})
    body = old_body if body is None else body
    signatures = signer.sign_as(PAYLOAD_TYPE, header + hashlib.sha256(body).digest())
    return b"".join([data[:8], len(header).to_bytes(4, "big"), header, body, *signatures])


names = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=200)


@SLOW
@given(
    st.binary(max_size=300), names, st.integers(0, 100_000), st.integers(0, 2**53 - 1), names, st.booleans()
)
def test_what_was_enclosed_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    payload: bytes,
    study: str,
    server_round: int,
    number: int,
    receiver: str,
    seal: bool,
) -> None:
    address = Address(study, server_round, "update", receiver, number, NOW + 60)
    data = enclose(payload, address, NORTH, SEAL.public() if seal else None)
    opened = open_envelope(
        data,
        Expected(receiver, {"update": seal}, study, server_round, "north"),
        trust=[NORTH.public()],
        now=NOW,
        numbers=Numbers(tmp_path_factory.mktemp("numbers")),
        sealing_keys=[SEAL],
    )
    assert (opened.payload, opened.header.address, opened.header.sender) == (payload, address, "north")
    assert opened.arrival is Arrival.FRESH
    assert unproven_header(data) == opened.header
    assert Header.from_bytes(opened.header.to_bytes()) == opened.header


def test_a_sealed_envelope_shows_nothing_of_its_payload_and_is_never_the_same_twice() -> None:
    first, second = sealed(PAYLOAD * 20), sealed(PAYLOAD * 20)
    assert PAYLOAD not in first
    one, other = unproven_header(first), unproven_header(second)
    assert first != second
    assert one.sha256 != other.sha256  # so that nobody can check a guess against it
    assert hashlib.sha256(PAYLOAD * 20).hexdigest() not in (one.sha256, other.sha256)


@pytest.mark.parametrize("make", [sealed, unsealed])
def test_every_changed_byte_is_refused(opening: Open, make: Callable[[], bytes]) -> None:
    data = make()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(EnvelopeRefused):
            opening(bytes(changed))
    assert opening(data).payload == PAYLOAD  # and none of that took its number


@MANY
@given(st.data())
def test_any_other_bytes_are_refused(opening: Open, data: st.DataObject) -> None:
    envelope = SEALED_ONCE
    place = data.draw(st.integers(0, len(envelope) - 1))
    insert = data.draw(st.binary(max_size=3))
    cut = data.draw(st.integers(0, 3))
    changed = envelope[:place] + insert + envelope[place + cut :]
    if changed != envelope:
        with pytest.raises(EnvelopeRefused):
            opening(changed)


SEALED_ONCE = sealed()


@MANY
@given(st.binary(max_size=200))
def test_noise_is_refused(opening: Open, noise: bytes) -> None:
    for data in (noise, SEALED_ONCE[:8] + noise, SEALED_ONCE[: len(noise)], SEALED_ONCE + noise + b"x"):
        with pytest.raises(EnvelopeRefused):
            opening(data)


def test_an_unknown_key_is_refused(opening: Open) -> None:
    with pytest.raises(SenderRefused, match="not enrolled here"):
        opening(unsealed(), trust=[SOUTH.public()])
    with pytest.raises(SenderRefused):
        opening(unsealed(), trust=[])


def test_a_key_that_was_rotated_out_is_refused_even_if_it_is_still_listed(opening: Open) -> None:
    with pytest.raises(SenderRefused, match="given up"):
        opening(unsealed(), retired={NORTH.public().keyid})
    assert opening(unsealed(), retired={SOUTH.public().keyid}).payload == PAYLOAD


def test_a_message_under_another_sites_name_is_refused(opening: Open) -> None:
    for data in (
        forged(unsealed(), sender="south"),
        forged(unsealed(), SOUTH, signed_by=SOUTH.public().keyid),
        unsealed(signer=Signer("north", b"\x07" * 32, b"\x08" * 32)),  # south's key, calling itself north
    ):
        with pytest.raises(SenderRefused, match="own name"):
            opening(data)
    with pytest.raises(EnvelopeRefused, match="does not verify"):
        opening(forged(unsealed(), SOUTH))


def test_another_sites_sealed_update_cannot_be_passed_off_as_ones_own(opening: Open) -> None:
    stolen = forged(sealed(), SOUTH, sender="south", signed_by=SOUTH.public().keyid)
    with pytest.raises(EnvelopeRefused, match="does not open"):
        opening(stolen)


@pytest.mark.parametrize(
    "fields", [{"round": 4}, {"number": 8}, {"study": "skin"}, {"expires": NOW + 61}, {"sha256": "0" * 64}]
)
def test_a_sealed_body_opens_under_its_own_header_only(opening: Open, fields: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeRefused, match="does not open"):
        opening(forged(sealed(), **fields))


def test_a_payload_that_is_not_the_headers_is_refused(opening: Open) -> None:
    with pytest.raises(EnvelopeRefused, match="not the one"):
        opening(forged(unsealed(), body=b"x" * len(PAYLOAD)))


@pytest.mark.parametrize("half", [0, 1])
def test_one_signature_of_two_is_not_enough(opening: Open, half: int) -> None:
    data = bytearray(unsealed())
    position = len(data) - (3309 + 64 if half == 0 else 3309)
    data[position + 3] ^= 1
    with pytest.raises(EnvelopeRefused, match="does not verify"):
        opening(bytes(data))


def test_a_releases_signature_is_none_of_a_message_and_the_other_way_round(opening: Open) -> None:
    data = unsealed()
    header, body = split(data)
    signed = header + hashlib.sha256(body).digest()
    wrong = NORTH.sign_as("application/vnd.in-toto+json", signed)
    with pytest.raises(EnvelopeRefused, match="does not verify"):
        opening(data[: -(64 + 3309)] + b"".join(wrong))
    statement = {"_type": STATEMENT_TYPE, "subject": [], "predicateType": "urn:t", "predicate": {}}
    release = parse_canonical(NORTH.sign(statement))
    ours = NORTH.sign_as(PAYLOAD_TYPE, canonical_json(statement))
    for signature, made in zip(release["signatures"], ours, strict=True):
        signature["sig"] = base64.b64encode(made).decode()
    with pytest.raises(SignatureRefused):
        verify(canonical_json(release), [NORTH.public()])
    assert pre_authentication("a", b"b c") != pre_authentication("a b", b"c")


@pytest.mark.parametrize(
    ("expected", "word"),
    [
        (Expected("north", {"update": True}), "receiver"),
        (Expected("office", {"update": True}, study="skin"), "study"),
        (Expected("office", {"update": True}, server_round=4), "round"),
        (Expected("office", {"update": True}, sender="south"), "sender"),
        (Expected("office", {"train": False}), "kind"),
    ],
)
def test_a_message_for_another_is_refused(opening: Open, expected: Expected, word: str) -> None:
    with pytest.raises(EnvelopeMisdirected, match=word):
        opening(SEALED_ONCE, expected)


def test_an_update_that_is_not_sealed_is_refused_where_it_must_be(opening: Open) -> None:
    with pytest.raises(EnvelopeRefused, match="must be sealed"):
        opening(unsealed(kind="update"))
    assert opening(unsealed(kind="refusal")).payload == PAYLOAD


def test_a_message_sealed_to_another_key_is_refused(opening: Open) -> None:
    with pytest.raises(EnvelopeRefused, match="not one of this receiver's"):
        opening(SEALED_ONCE, sealing_keys=[OTHER_SEAL])
    with pytest.raises(EnvelopeRefused, match="does not open"):
        opening(forged(SEALED_ONCE, sealed_to=OTHER_SEAL.public().keyid))


@pytest.mark.parametrize(
    ("late", "taken"),
    [(-60, True), (CLOCK_TOLERANCE_SECONDS, True), (CLOCK_TOLERANCE_SECONDS + 1, False), (10**7, False)],
)
def test_a_message_past_its_expiry_is_refused_but_for_ten_minutes_of_clock(
    opening: Open, late: int, taken: bool
) -> None:
    data, now = unsealed(), ADDRESS.expires + late
    if taken:
        assert opening(data, now=now).payload == PAYLOAD
    else:
        with pytest.raises(EnvelopeExpired, match=r"expired \d+ s ago"):
            opening(data, now=now)


def test_a_message_that_never_expires_is_refused(opening: Open) -> None:
    longest = NOW + LONGEST_LIFE_SECONDS + CLOCK_TOLERANCE_SECONDS
    with pytest.raises(EnvelopeExpired, match="31 days"):
        opening(unsealed(expires=longest + 1))
    assert opening(unsealed(expires=longest)).payload == PAYLOAD


def test_a_message_played_again_is_refused_also_by_a_restarted_receiver(opening: Open) -> None:
    data = unsealed()
    opening(data)
    for _ in range(2):
        with pytest.raises(EnvelopeReplayed, match="played again"):
            opening(data)


def test_messages_in_another_order_are_refused_unless_they_may_come_late(opening: Open) -> None:
    first, second = unsealed(number=7), unsealed(number=8)
    opening(second)
    with pytest.raises(EnvelopeReplayed, match="after a later one"):
        opening(first)
    assert opening(first, accepted=ANY_ORDER).arrival is Arrival.LATE
    with pytest.raises(EnvelopeReplayed, match="played again"):
        opening(first, accepted=ANY_ORDER)


def test_the_very_same_envelope_may_come_again_where_it_is_accepted_but_no_other_under_its_number(
    opening: Open,
) -> None:
    data = sealed()
    opening(data, accepted=frozenset(Arrival))
    opening(sealed(number=8), accepted=frozenset(Arrival))
    assert opening(data, accepted=frozenset(Arrival)) == Opened(unproven_header(data), PAYLOAD, Arrival.AGAIN)
    with pytest.raises(EnvelopeReplayed, match="other content"):
        opening(sealed(b"another update"), accepted=frozenset(Arrival))


def test_a_refused_message_takes_no_number(opening: Open) -> None:
    data = sealed()
    for changes in (
        {"now": NOW + 10**6},
        {"expected": Expected("south", {"update": True})},
        {"sealing_keys": []},
        {"trust": []},
    ):
        with pytest.raises(Refusal):
            opening(data, **changes)
    assert opening(data).arrival is Arrival.FRESH


def test_a_message_that_could_not_be_noted_is_not_handed_on(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedward.common.numbers.write_atomically", _full_disk)
    with pytest.raises(OSError, match="full"):
        opening(unsealed())


def _full_disk(*_: object) -> None:
    raise OSError("full")


def test_sizes_are_bounded(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    data = unsealed()
    with pytest.raises(EnvelopeRefused, match="header is cut or too long"):
        opening(data[:8] + (2**32 - 1).to_bytes(4, "big") + data[12:])
    for size in (MOST_PAYLOAD_BYTES, MOST_PAYLOAD_BYTES + 1, -1, len(PAYLOAD) + 1, len(PAYLOAD) - 1):
        with pytest.raises(EnvelopeRefused, match=r"longer than|out of range"):
            opening(forged(data, size=size))
    monkeypatch.setattr(envelope_module, "MOST_ENVELOPE_BYTES", len(data) - 1)
    with pytest.raises(EnvelopeRefused, match="is over"):
        opening(data)
    monkeypatch.setattr(envelope_module, "MOST_PAYLOAD_BYTES", len(PAYLOAD) - 1)
    with pytest.raises(EnvelopeRefused, match="at most"):
        unsealed()
    assert MOST_ENVELOPE_BYTES < MOST_PAYLOAD_BYTES + 10_000


@pytest.mark.parametrize(
    "fields",
    [
        {"study": "x" * 201},
        {"study": "a\nb"},
        {"study": 3},
        {"round": -1},
        {"round": True},
        {"round": 1.0},
        {"round": 100_001},
        {"kind": ""},
        {"kind": "Update"},
        {"kind": "x" * 33},
        {"sender": ""},
        {"receiver": ""},
        {"number": -1},
        {"number": 2**53},
        {"number": "7"},
        {"expires": None},
        {"sha256": "0" * 63},
        {"sha256": "A" * 64},
        {"signed_by": ""},
        {"sealed_to": "x"},
        {"schema": "fedward.envelope/2"},
        {"extra": 1},
    ],
)
def test_a_header_out_of_range_is_refused(opening: Open, fields: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeRefused, match="malformed"):
        opening(forged(unsealed(), **fields))


def test_a_header_in_another_spelling_is_refused(opening: Open) -> None:
    data = unsealed()
    header, body = split(data)
    spaced = re.sub(rb",", b", ", header)
    with pytest.raises(EnvelopeRefused, match="canonical"):
        opening(data[:8] + len(spaced).to_bytes(4, "big") + spaced + body + data[-(64 + 3309) :])


@pytest.mark.parametrize("change", [{"study": "x" * 201}, {"kind": "?"}, {"number": 2**53}, {"receiver": ""}])
def test_what_cannot_be_opened_is_not_enclosed(change: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeRefused):
        unsealed(**change)
