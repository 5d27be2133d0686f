"""A release's model in one zstd frame: what went in comes out, and ternary weights take 1.6 bits."""

from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from fedward.common.compression import compressed
from fedward.common.config import LocalSettings
from fedward.common.models import FAMILIES, build_student, flatten, initialise
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import to_onnx
from fedward.server.leftovers import rounded


def model_of(tensors: list[np.ndarray]) -> bytes:
    stored = [numpy_helper.from_array(tensor, f"t{index}") for index, tensor in enumerate(tensors)]
    return helper.make_model(helper.make_graph([], "g", [], [], stored)).SerializeToString()  # type: ignore[no-any-return]


def opened(frame: bytes, size: int) -> bytes:
    """As `fedward.common.bundle` reads: one frame, streamed."""
    reader = zstandard.ZstdDecompressor().stream_reader(frame)
    return reader.read(size + 1)  # type: ignore[no-any-return]


SIZES = st.lists(st.sampled_from([0, 1, 1000, 1024, 5000, 200_000]), max_size=5)


@settings(max_examples=30, deadline=None)
@given(SIZES, st.sampled_from([0, 1, 127]), st.integers(0, 3))
def test_any_model_comes_out_of_its_one_frame_again(sizes: list[int], largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = [rng.integers(-largest, largest, size, np.int8, endpoint=True) for size in sizes]
    floats = [rng.normal(size=size % 999).astype(np.float32) for size in sizes]
    model = model_of([tensor for pair in zip(codes, floats, strict=True) for tensor in pair])
    for family in FAMILIES:
        frame = compressed(model, family)
        assert opened(frame, len(model)) == model
        assert frame == compressed(model, family)
        assert zstandard.get_frame_parameters(frame).content_size == len(model)


def test_equal_tensors_are_each_found_where_they_stand() -> None:
    same = np.ones(4096, np.int8)
    model = model_of([same, same, same])
    assert opened(compressed(model, "vit"), len(model)) == model


def test_trying_both_is_never_longer() -> None:
    for tensors in ([np.zeros(5000, np.int8)], [np.arange(3, dtype=np.int8)], []):
        model = model_of(tensors)
        assert len(compressed(model, "vit")) <= len(compressed(model, "cnn"))


@pytest.mark.parametrize("family", ["cnn", "depthwise"])
def test_a_convolutional_students_bytes_are_those_of_earlier_releases(family: str) -> None:
    model = model_of([np.zeros(5000, np.int8), np.arange(9, dtype=np.float32)])
    assert compressed(model, family) == zstandard.ZstdCompressor(level=19).compress(model)


@pytest.mark.parametrize(
    ("student", "side", "most_bytes", "least_ratio"),
    [
        ("ternary-vit", 28, 90_000, 13.5),
        ("ternary-vit-m", 28, 620_000, 17.0),
        ("ternary-vit-m", 224, 680_000, 16.0),
        ("ternary-vit-l", 28, 1_860_000, 18.0),
    ],
)
def test_a_ternary_transformers_release_is_as_small_as_promised(
    student: str, side: int, most_bytes: int, least_ratio: float, make_local: Callable[..., LocalSettings]
) -> None:
    graphs = []
    for name in (student, student.replace("ternary", "fp32")):
        local = make_local(student=name, height=side, width=side)
        model = build_student(local.spec)
        initialise(model, KeyedGenerator.from_seed(0))
        latents = flatten(list(model.parameters())).numpy()
        # As after training: no two norms, biases or positions alike.
        moved = latents + 0.05 * np.random.default_rng(0).normal(size=len(latents))
        graphs.append(to_onnx(local, rounded(local, moved.astype(np.float32))))
    size = len(compressed(graphs[0], "vit"))
    assert size <= most_bytes
    assert len(graphs[1]) / size >= least_ratio
