"""What a release rounds of a transformer is small, changes no code, and is rounded once and for all."""

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from fedward.common.config import LocalSettings
from fedward.common.models import SMALLEST, build_student, flatten, initialise, quantized_weights, unflatten
from fedward.common.quantization import QUANTIZERS, each_precision, is_quantized
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import latents_of, to_onnx
from fedward.server.leftovers import rounded
from fedward.server.reference import student_logits
from fedward.server.release import run_onnx

LocalMaker = Callable[..., LocalSettings]
SMALL = ["ternary-vit", "int8-vit", "ternary-vit-mq"]


def _latents(local: LocalSettings, seed: int = 0, size: float = 1.0) -> np.ndarray:
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(seed))
    latents = flatten(list(model.parameters())).numpy()
    moved = size * (latents + 0.05 * np.random.default_rng(seed).normal(size=len(latents)))
    return np.asarray(moved, np.float32)


def _parts(local: LocalSettings, latents: np.ndarray) -> dict[str, torch.Tensor]:
    named = dict(build_student(local.spec).named_parameters())
    return dict(zip(named, unflatten(torch.from_numpy(latents), list(named.values())), strict=True))


@pytest.mark.parametrize("student", SMALL)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 1e4, 1e9]))
def test_what_was_rounded_is_not_rounded_again_and_no_code_changes(
    make_local: LocalMaker, student: str, seed: int, size: float
) -> None:
    local = make_local(student=student)
    latents = _latents(local, seed, size)
    latents[: len(latents) // 4] = 0.0  # channels, biases and positions without a value
    once = rounded(local, latents)
    np.testing.assert_array_equal(rounded(local, once), once)
    before, after = _parts(local, latents), _parts(local, once)
    for name, part in before.items():
        if is_quantized(part):
            quantize = QUANTIZERS[local.spec.precision]
            assert torch.equal(quantize(part).codes, quantize(after[name]).codes)


def test_weights_of_fewer_bits_keep_their_codes_too(make_local: LocalMaker) -> None:
    local = make_local(student="int8-vit")
    local = dataclasses.replace(
        local, bits=tuple([2, 4, 8][k % 3] for k in range(quantized_weights(local.spec)))
    )
    latents = _latents(local)
    before, after = (list(_parts(local, one).values()) for one in (latents, rounded(local, latents)))
    for part, own, precision in zip(
        before, after, each_precision(local.spec.precisions, before), strict=True
    ):
        if is_quantized(part):
            quantize = QUANTIZERS[precision]
            assert torch.equal(quantize(part).codes, quantize(own).codes)


@pytest.mark.parametrize("student", SMALL)
@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e9])
def test_rounding_moves_nothing_far(make_local: LocalMaker, student: str, size: float) -> None:
    local = make_local(student=student)
    latents = _latents(local, 0, size)
    before, after = _parts(local, latents), _parts(local, rounded(local, latents))
    for name, part in before.items():
        if not is_quantized(part):
            allowed = (1 / 254 + 2**-10) if name.endswith("bias") else 2**-11
            assert (after[name] - part).abs().max() <= allowed * part.abs().max() * (1 + 1e-6)


@pytest.mark.parametrize("student", [name for name in SMALLEST if name not in SMALL])
def test_other_students_are_released_as_they_are(make_local: LocalMaker, student: str) -> None:
    local = make_local(student=student)
    latents = _latents(local)
    assert rounded(local, latents) is latents
    stored = onnx.load_from_string(to_onnx(local, np.round(latents, 1))).graph.initializer
    assert {one.data_type for one in stored} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8}


@pytest.mark.parametrize("student", SMALL)
def test_nothing_large_is_stored_in_fp32(make_local: LocalMaker, student: str) -> None:
    local = make_local(student=student, height=28, width=28)
    graph = to_onnx(local, rounded(local, _latents(local)))
    stored = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(graph).graph.initializer}
    large = {name: array for name, array in stored.items() if array.size > 1}
    assert {array.dtype for array in large.values()} == {np.dtype(np.int8), np.dtype(np.float16)}
    assert all(name.endswith((".codes", ".scale", "weight")) for name in stored)
    assert {array.shape for name, array in stored.items() if name.endswith("bias.scale")} == {()}
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)


@pytest.mark.parametrize("student", SMALL)
def test_the_rounded_graph_computes_what_the_rounded_student_computes(
    make_local: LocalMaker, student: str
) -> None:
    local = make_local(student=student, height=28, width=28)
    latents = rounded(local, _latents(local))
    images = np.random.default_rng(1).integers(0, 256, (20, 28, 28, 1), np.uint8)
    inputs = (images.transpose(0, 3, 1, 2).astype(np.float32) / 255.0 - 0.5) / 0.5
    found = run_onnx(to_onnx(local, latents), inputs)
    np.testing.assert_allclose(found, student_logits(local, latents, images), atol=1e-4)


@pytest.mark.parametrize("student", SMALL)
def test_the_rounded_student_decides_like_the_trained_one(make_local: LocalMaker, student: str) -> None:
    local = make_local(student=student, height=28, width=28)
    latents = _latents(local)
    images = np.random.default_rng(1).integers(0, 256, (200, 28, 28, 1), np.uint8)
    before, after = (student_logits(local, one, images) for one in (latents, rounded(local, latents)))
    margin = before[:, 1] - before[:, 0]
    assert np.abs(after[:, 1] - after[:, 0] - margin).max() < 0.1 * margin.std()


@pytest.mark.parametrize("student", SMALL)
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_a_study_that_continues_starts_at_the_rounded_student(
    make_local: LocalMaker, student: str, size: float
) -> None:
    local = make_local(student=student)
    latents = rounded(local, _latents(local, 0, size))
    np.testing.assert_array_equal(latents_of(to_onnx(local, latents), local), latents)


@pytest.mark.parametrize("student", SMALL)
def test_releases_of_one_student_have_the_same_tensors_whatever_it_learnt(
    make_local: LocalMaker, student: str
) -> None:
    """Or there would be no patch between them."""
    local = make_local(student=student)
    kinds = []
    for share in (0.0, 1e-7, 1e-3, 1.0):  # biases that are at zero still, that hardly moved, that moved
        latents = _latents(local)
        for name, part in _parts(local, latents).items():
            if name.endswith("bias"):
                part *= share
            elif name.endswith("weight") and not is_quantized(part) and share == 0.0:
                part.fill_(1.0)
        stored = onnx.load_from_string(to_onnx(local, rounded(local, latents))).graph.initializer
        kinds.append([(one.name, one.data_type, list(one.dims)) for one in stored])
    assert all(one == kinds[0] for one in kinds)
