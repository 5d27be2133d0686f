"""A message's records come back from their bytes, and are checked as ever."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedward.common.config import LocalSettings
from fedward.common.envelope import Expected, enclose, open_envelope
from fedward.common.envelope_header import Address
from fedward.common.errors import PayloadRefused
from fedward.common.framing import pack
from fedward.common.messages import ANCHOR, LATENTS, TrainReply, TrainRequest
from fedward.common.numbers import Arrival, NextNumber, Numbers
from fedward.common.records import pack_records, unpack_records
from fedward.common.sealing_keys import announce, create_sealing_key, load_sealing_key, read_announcement
from fedward.common.signing import Signer


def vector(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def test_a_request_comes_back(make_local: Callable[..., LocalSettings]) -> None:
    token = f"{'a' * 48}:{'b' * 64}:{'c' * 64}"
    vectors = {LATENTS: vector(1, 2, 3), ANCHOR: vector()}
    sent = TrainRequest("study", 2, make_local(), 0.5, ("fp32", "int8"), vectors, token)
    data = pack_records(sent.to_records())
    received = TrainRequest.from_records(unpack_records(data))
    assert (received.content_digest, received.anchor) == (sent.content_digest, token)
    assert pack_records(received.to_records()) == data


def test_a_whole_round_travels_in_envelopes(tmp_path: Path, make_local: Callable[..., LocalSettings]) -> None:
    """As it is to be wired: a signed request, a sealed answer that is stored enclosed and may come again."""
    now = 1_800_000_000
    office, north = Signer("office", b"1" * 32, b"2" * 32), Signer("north", b"3" * 32, b"4" * 32)
    create_sealing_key(tmp_path / "office")
    announced = announce(load_sealing_key(tmp_path / "office").public(), office, now + 9)
    asked = TrainRequest("chest", 2, make_local(), 0.5, ("fp32", "fp32"), {LATENTS: vector(1, 2, 3)})
    outgoing = NextNumber(tmp_path / "office" / "next-number")
    to_north = Address("chest", 2, "train", "north", outgoing.take(now), now + 60)
    request = enclose(pack_records(asked.to_records()), to_north, office)

    came = open_envelope(
        request,
        Expected("north", {"train": False}, sender="office"),
        trust=[office.public()],
        now=now,
        numbers=Numbers(tmp_path / "north"),
    )
    received = TrainRequest.from_records(unpack_records(came.payload))
    assert received.content_digest == asked.content_digest
    assert (received.study, received.server_round) == (came.header.address.study, 2)
    reply = TrainReply("chest", 2, "north", 20, "fp32", vector(7, 8, 9))
    key = read_announcement(announced, "office", [office.public()], now)
    back = Address(
        "chest", 2, "update", "office", NextNumber(tmp_path / "north" / "next").take(now), now + 60
    )
    stored = enclose(pack_records(reply.to_records()), back, north, key)

    for arrival in (Arrival.FRESH, Arrival.AGAIN):
        opened = open_envelope(
            stored,
            Expected("office", {"update": True, "refusal": False}, "chest", 2, "north"),
            trust=[north.public()],
            now=now,
            numbers=Numbers(tmp_path / "office" / "numbers"),
            accepted=frozenset(Arrival),
            sealing_keys=[load_sealing_key(tmp_path / "office")],
        )
        assert opened.arrival is arrival
        folded = TrainReply.from_records(unpack_records(opened.payload))
        assert folded.to_bytes() == reply.to_bytes()


def test_a_reply_comes_back() -> None:
    sent = TrainReply("study", 2, "north", 20, "int8", vector(7, 8, 9))
    received = TrainReply.from_records(unpack_records(pack_records(sent.to_records())))
    assert received.to_bytes() == sent.to_bytes()


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"model": ArrayRecord({"a": Array(np.zeros(3, np.float32))})}),
        RecordDict({"model": ArrayRecord({"a": Array(np.zeros((3, 3), np.uint8))})}),
        RecordDict({"config": ConfigRecord({"a": 3})}),
        RecordDict({"loss": MetricRecord({"a": 3.0})}),
        RecordDict({"a/b": ConfigRecord({"a": b""})}),
    ],
)
def test_other_records_do_not_travel(content: RecordDict) -> None:
    with pytest.raises(PayloadRefused):
        pack_records(content)


@pytest.mark.parametrize(
    "parts", [{"a": b""}, {"metric/a/b": b""}, {"config/a": b""}, {"array/m/a": b"", "config/m/b": b""}]
)
def test_other_parts_are_refused(parts: dict[str, bytes]) -> None:
    with pytest.raises(PayloadRefused, match="malformed"):
        unpack_records(pack(parts))
