"""Arrays come out as they went in, and a hostile npz is refused before it costs memory."""

import io
import struct
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedward.common.errors import GoldenRefused
from fedward.common.golden import Golden, golden_bytes, read_golden
from fedward.common.npz import array_headers, read_rows

LIMIT = 1 << 20


def _npz(**named: npt.NDArray[Any]) -> io.BytesIO:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **named)
    return buffer


@given(
    arrays(
        st.sampled_from([np.uint8, np.float32, np.int64]), array_shapes(min_dims=0, max_dims=4, min_side=0)
    )
)
def test_an_array_comes_back(array: npt.NDArray[Any]) -> None:
    for stored in (array, np.asarray(array, order="F")):
        file = _npz(a=stored)
        assert array_headers(file)["a"].shape == array.shape
        found = read_rows(file, "a", LIMIT)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array, equal_nan=found.dtype.kind == "f")


@given(st.data())
def test_rows_are_those_of_the_array(data: st.DataObject) -> None:
    array = np.arange(60, dtype=np.uint8).reshape(10, 2, 3)
    first = data.draw(st.integers(0, 9))
    end = data.draw(st.integers(first + 1, 10))
    assert np.array_equal(read_rows(_npz(a=array), "a", LIMIT, (first, end)), array[first:end])


@pytest.mark.parametrize("rows", [(0, 11), (10, 11), (3, 3), (4, 3), (-1, 2)])
def test_rows_that_do_not_exist_are_refused(rows: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no rows"):
        read_rows(_npz(a=np.zeros((10, 2), np.uint8)), "a", LIMIT, rows)


def test_the_limit_holds_to_the_byte() -> None:
    file = _npz(a=np.zeros(100, np.uint8))
    assert len(read_rows(file, "a", 100)) == 100
    with pytest.raises(ValueError, match="more than the 99"):
        read_rows(file, "a", 99)


def _with_header(shape: str, descr: str = "'|u1'", body: bytes = b"1234") -> io.BytesIO:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body)
    return buffer


@pytest.mark.parametrize(
    ("shape", "descr"),
    [
        ("(1000000000000,)", "'|u1'"),
        ("(9,)", "'|u1'"),
        ("(-4,)", "'|u1'"),
        ("(-2, -2)", "'|u1'"),
        ("4", "'|u1'"),
        ("(4.0,)", "'|u1'"),
        ("(4,)", "'|O'"),
        ("(4,)", "'|S0'"),
        ("(4,)", "'nonsense'"),
        ("(4,)", "None"),
        ("(4,", "'|u1'"),
        ("__import__('os')", "'|u1'"),
    ],
)
def test_a_hostile_header_is_refused(shape: str, descr: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_rows(_with_header(shape, descr), "a", LIMIT)


@settings(max_examples=200)
@given(st.data())
def test_damage_is_a_value_error_or_does_no_harm(data: st.DataObject) -> None:
    whole = _npz(a=np.arange(50, dtype=np.uint8)).getvalue()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(changed), whole[:place]):
        try:
            array_headers(io.BytesIO(damaged))
            assert read_rows(io.BytesIO(damaged), "a", LIMIT).nbytes <= LIMIT
        except ValueError:
            pass


def test_golden_outputs_come_back_and_equal_ones_are_equal_bytes() -> None:
    inputs, logits = np.ones((2, 1, 3, 3), np.float32), np.zeros((2, 2), np.float32)
    data = golden_bytes(Golden(inputs, logits, 1e-3))
    found = read_golden(data)
    assert np.array_equal(found.inputs, inputs)
    assert np.array_equal(found.logits, logits)
    assert found.tolerance == np.float32(1e-3)
    assert golden_bytes(Golden(inputs.copy(), logits.copy(), 1e-3)) == data
    assert found.form_tolerance is None
    allowed = read_golden(golden_bytes(Golden(inputs, logits, 1e-3, 0.5)))
    assert (allowed.tolerance, allowed.form_tolerance) == (np.float32(1e-3), 0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": np.ones((0, 1, 3, 3), np.float32), "logits": np.ones((0, 2), np.float32)},
        {"inputs": np.ones((2, 1, 3, 3), np.float64)},
        {"inputs": np.ones((3, 1, 3, 3), np.float32)},
        {"inputs": np.full((2, 1, 3, 3), np.nan, np.float32)},
        {"logits": np.ones(2, np.float32)},
        {"tolerance": np.float32(np.inf)},
        {"tolerance": np.float32(-1)},
        {"tolerance": np.ones(2, np.float32)},
        {"form_tolerance": np.float32(np.nan)},
        {"form_tolerance": np.float32(-1)},
        {"form_tolerance": np.ones(2, np.float32)},
        {"form_tolerance": np.float64(1)},
    ],
)
def test_golden_outputs_that_prove_nothing_are_refused(change: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "inputs": np.ones((2, 1, 3, 3), np.float32),
        "logits": np.ones((2, 2), np.float32),
        "tolerance": np.float32(1e-3),
    }
    read_golden(_npz(**right).getvalue())
    with pytest.raises(GoldenRefused):
        read_golden(_npz(**{**right, **change}).getvalue())


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"x" * 100])
def test_golden_outputs_that_are_no_npz_are_refused(data: bytes) -> None:
    with pytest.raises(GoldenRefused):
        read_golden(data)
