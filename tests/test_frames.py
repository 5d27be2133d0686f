"""The daemon's protocol: what is packed is unpacked bit for bit, and anything else is refused."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedward.client.frames import (
    CHUNK_BYTES,
    Request,
    pack_answer,
    pack_request,
    unpack_answer,
    unpack_request,
)
from fedward.common.errors import PayloadRefused

names = st.text(min_size=1, max_size=8)
arrays = st.dictionaries(
    names, st.binary(max_size=40).map(lambda raw: np.frombuffer(raw, np.uint8)), max_size=3
)
values = st.one_of(st.binary(max_size=20), st.text(max_size=9), st.integers(-(2**40), 2**40), st.booleans())


def _content(vectors: dict[str, np.ndarray], config: dict[str, object]) -> RecordDict:
    return RecordDict(
        {
            "model": ArrayRecord({name: Array(vector) for name, vector in vectors.items()}),
            "config": ConfigRecord(config),  # type: ignore[arg-type]
            "empty": MetricRecord(),
        }
    )


def _assert_same(found: RecordDict, expected: RecordDict) -> None:
    assert set(found) == set(expected)
    assert dict(found.config_records["config"]) == dict(expected.config_records["config"])
    assert dict(found.metric_records["empty"]) == {}
    for name, array in expected.array_records["model"].items():
        same = found.array_records["model"][name]
        assert (same.dtype, tuple(same.shape), same.stype, same.data) == (
            array.dtype,
            tuple(array.shape),
            array.stype,
            array.data,
        )


@given(arrays, st.dictionaries(names, values, max_size=3), st.floats(1.0, 1e5))
def test_a_request_comes_out_as_it_went_in(
    vectors: dict[str, np.ndarray], config: dict[str, object], seconds: float
) -> None:
    request = Request("train", seconds, _content(vectors, config))
    found = unpack_request(pack_request(request))
    assert (found.kind, found.seconds) == ("train", seconds)
    _assert_same(found.content, request.content)


def test_a_large_update_travels_in_chunks() -> None:
    content = _content({"latents": np.arange(3 * CHUNK_BYTES, dtype=np.uint8)}, {})
    chunks = list(pack_answer(content))
    assert len(chunks) > 3
    assert all(len(chunk) <= CHUNK_BYTES for chunk in chunks)
    answer = unpack_answer(chunks)
    assert isinstance(answer, RecordDict)
    _assert_same(answer, content)


def test_an_error_keeps_its_code_and_reason() -> None:
    answer = unpack_answer(pack_answer(Error(100, "BudgetRefused: no.")))
    assert isinstance(answer, Error)
    assert (answer.code, answer.reason) == (100, "BudgetRefused: no.")


WHOLE = b"".join(pack_request(Request("train", 5.0, _content({"a": np.ones(50, np.uint8)}, {"b": b"xyz"}))))


@given(st.integers(0, len(WHOLE) - 1))
def test_what_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(PayloadRefused):
        unpack_request([WHOLE[:length]])


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read_but_never_a_crash(data: bytes) -> None:
    with pytest.raises(PayloadRefused):
        unpack_request([data])


CONFIG = ["record", "config", "c"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kind": 5},
        {"seconds": "1"},
        {"records": None},
        {"records": 7},
        {"records": [["bytes", "nowhere", "a", 0]]},
        {"records": [CONFIG, ["bytes", "c", "a", -1]]},
        {"records": [CONFIG, ["bytes", "c", "a", 99]]},
        {"records": [CONFIG, ["array", "c", "a", "uint8", [1], "numpy.ndarray", 0]]},
    ],
)
def test_a_header_that_is_not_as_it_should_be_is_refused(change: dict[str, object]) -> None:
    header = {"version": 1, "kind": "train", "seconds": 1.0, "records": []} | change
    text = json.dumps(header).encode()
    with pytest.raises(PayloadRefused):
        unpack_request([len(text).to_bytes(8, "big") + text])
