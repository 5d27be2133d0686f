"""What changed between two models makes the second of the first, whatever stands in them."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from fedward.common.code_changes import GAPS, NUMBERS, VALUES, difference, restored

TYPES = ("ternary", np.int8, np.float16, np.float32, np.int64)


def model_of(arrays: list[np.ndarray]) -> bytes:
    stored = [numpy_helper.from_array(array, f"t{index}") for index, array in enumerate(arrays)]
    return helper.make_model(helper.make_graph([], "g", [], [], stored)).SerializeToString()  # type: ignore[no-any-return]


def _drawn(rng: np.random.Generator, kind: object, size: int) -> np.ndarray:
    if kind == "ternary":
        return rng.integers(-1, 1, size, np.int8, endpoint=True)
    # Any bits at all: infinities, no numbers, both zeros.
    return np.frombuffer(rng.bytes(size * np.dtype(kind).itemsize), kind)  # type: ignore[call-overload, no-any-return]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(TYPES), st.sampled_from([0, 1, 7, 300, 5000])), max_size=6),
    st.sampled_from([0.0, 0.001, 0.1, 1.0]),
    st.integers(0, 2**32),
)
def test_the_new_model_comes_out_of_the_old_one(
    tensors: list[tuple[object, int]], share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    old = [_drawn(rng, *tensor) for tensor in tensors]
    new = [
        np.where(rng.random(array.shape) < share, _drawn(rng, *tensor), array)
        for tensor, array in zip(tensors, old, strict=True)
    ]
    before, after = model_of(old), model_of(new)
    assert restored(before, difference(before, after)) == after


def test_gaps_and_values_are_spelled_as_the_format_says() -> None:
    """Golden bytes: what an old device reads, a new coordinator writes."""
    old, new = np.zeros(600, np.int8), np.zeros(600, np.int8)
    old[[1, 2]] = 1, -1
    new[[0, 1, 2, 258, 599]] = 1, 0, 1, -1, 1
    parts = difference(model_of([old]), model_of([new]))
    read = {name: zstandard.ZstdDecompressor().decompress(part) for name, part in parts.items()}
    assert read[GAPS] == bytes([0, 0, 0, 255, 0, 255, 85])
    assert read[VALUES] == bytes([0, 1, 1, 255, 1])  # first those that were not zero
    assert set(read[NUMBERS]) == {0}


def test_numbers_are_spelled_as_the_format_says() -> None:
    old = np.array([1.0, 1.0, -0.0, 2.0], np.float16)
    new = np.array(
        [1.0, np.nextafter(np.float16(1), np.float16(2)), 0.0, np.nextafter(np.float16(2), np.float16(0))]
    )
    parts = difference(model_of([old]), model_of([new.astype(np.float16)]))
    read = zstandard.ZstdDecompressor().decompress(parts[NUMBERS])
    assert (read[-8:-4], read[-4:]) == (bytes([0, 2, 2, 1]), bytes(4))  # low bytes, then high ones


@pytest.mark.parametrize(
    "other", [[np.zeros(8, np.int8)], [np.zeros(9, np.float16)], [np.zeros(9, np.int8)] * 2, []]
)
def test_models_with_other_tensors_have_no_difference(other: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="same tensors"):
        difference(model_of([np.zeros(9, np.int8)]), model_of(other))
