"""A message's records come back from their bytes, and are checked as ever."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedward.common.config import LocalSettings
from fedward.common.errors import PayloadRefused
from fedward.common.framing import pack
from fedward.common.messages import ANCHOR, LATENTS, TrainReply, TrainRequest
from fedward.common.records import pack_records, unpack_records


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
