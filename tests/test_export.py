"""The exported graph computes what training computed with, in standard operators, byte for byte the same."""

import getpass
import os
import socket
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from fedward.common.config import LocalSettings
from fedward.common.images import to_tensor
from fedward.common.models import SMALLEST, build_student, flatten, initialise, unflatten
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import latents_of, to_onnx
from fedward.server.reference import student_logits
from fedward.server.release import run_onnx

LocalMaker = Callable[..., LocalSettings]
SHAPES = [(16, 16), (28, 28), (28, 40), (64, 64)]
QUANTISED = [student for student in SMALLEST if not student.startswith("fp32")]


def _latents(local: LocalSettings, seed: int = 0) -> np.ndarray:
    """As after some training: norms and biases away from where they start."""
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(seed))
    latents = flatten(list(model.parameters())).numpy()
    return (latents + 0.05 * np.random.default_rng(seed).normal(size=len(latents))).astype(np.float32)


def _initializers(graph: bytes) -> dict[str, np.ndarray]:
    stored = onnx.load_from_string(graph).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in stored}


@pytest.mark.parametrize("student", SMALLEST)
@pytest.mark.parametrize(("shape", "channels"), product(SHAPES, (1, 3)))
def test_the_graph_computes_what_the_student_computes(
    make_local: LocalMaker, student: str, shape: tuple[int, int], channels: int
) -> None:
    classes = ("a", "b", "c") if channels == 3 else ("a", "b")
    task = "multi-class" if channels == 3 else "binary"
    local = make_local(
        student=student, height=shape[0], width=shape[1], channels=channels, classes=classes, task=task
    )
    latents, rng = _latents(local), np.random.default_rng(1)
    images = rng.integers(0, 256, size=(5, *shape, channels), dtype=np.uint8)
    graph = to_onnx(local, latents)
    for batch in (images, images[:1]):
        found = run_onnx(graph, to_tensor(batch).numpy())
        expected = student_logits(local, latents, batch)
        assert found.shape == (len(batch), len(classes))
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("student", "side"),
    [("ternary-vit-m", 28), ("int8-vit-mq", 30), ("ternary-vit-s-mq", 64), ("fp32-vit", 224)],
)
def test_a_transformer_of_another_size_or_with_one_key_decides_as_it_was_trained_to(
    make_local: LocalMaker, student: str, side: int
) -> None:
    local = make_local(student=student, height=side, width=side)
    latents = _latents(local)
    images = np.random.default_rng(1).integers(0, 256, size=(32, side, side, 1), dtype=np.uint8)
    found = run_onnx(to_onnx(local, latents), to_tensor(images).numpy())
    expected = student_logits(local, latents, images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    clear = np.abs(expected[:, 0] - expected[:, 1]) > 1e-3
    assert np.array_equal(found.argmax(axis=1)[clear], expected.argmax(axis=1)[clear])


@pytest.mark.parametrize("student", SMALLEST)
def test_only_standard_operators_stand_in_the_graph(make_local: LocalMaker, student: str) -> None:
    model = onnx.load_from_string(to_onnx(make_local(student=student), _latents(make_local(student=student))))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert {node.domain for node in model.graph.node} == {""}
    for node in model.graph.node:
        assert onnx.defs.get_schema(node.op_type, 21).domain == ""
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("student", QUANTISED)
def test_quantised_weights_are_stored_as_codes_with_their_scale_apart(
    make_local: LocalMaker, student: str
) -> None:
    local = make_local(student=student)
    stored, highest = _initializers(to_onnx(local, _latents(local))), 1 if "ternary" in student else 127
    for name, parameter in build_student(local.spec).named_parameters():
        if parameter.dim() < 2:
            assert stored.pop(name).dtype == np.float32
            continue
        codes, scale = stored.pop(name + ".codes"), stored.pop(name + ".scale")
        assert (codes.dtype, codes.shape) == (np.int8, tuple(parameter.shape))
        assert (scale.dtype, scale.shape) == (np.float32, (len(parameter),))
        assert int(np.abs(codes.astype(int)).max()) == highest
        if highest == 1:
            assert set(np.unique(codes)) == {-1, 0, 1}
    assert stored == {}


@pytest.mark.parametrize("student", SMALLEST)
def test_equal_latents_give_equal_bytes(make_local: LocalMaker, student: str) -> None:
    local = make_local(student=student)
    assert to_onnx(local, _latents(local)) == to_onnx(local, _latents(local).copy())
    assert to_onnx(local, _latents(local)) != to_onnx(local, _latents(local, 1))


def test_what_is_below_the_quantiser_does_not_change_the_graph(make_local: LocalMaker) -> None:
    """Latents of the same Q are the same release."""
    local = make_local(student="ternary-cnn")
    graph = to_onnx(local, _latents(local))
    assert to_onnx(local, latents_of(graph, local)) == graph


@pytest.mark.parametrize("student", SMALLEST)
def test_nothing_of_this_machine_stands_in_the_graph(make_local: LocalMaker, student: str) -> None:
    local = make_local(student=student)
    graph = to_onnx(local, _latents(local))
    model = onnx.load_from_string(graph)
    here = [os.getcwd(), str(Path.home()), socket.gethostname(), getpass.getuser(), torch.__version__]
    # Shorter words than four bytes stand among the weights by chance.
    for words in [*here, ".py", "/home", "/tmp/", "torch"]:
        assert len(words) < 4 or words.encode() not in graph
    assert (model.producer_name, model.producer_version, model.doc_string) == ("fedward", "", "")
    assert not model.metadata_props
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)


def _quantised(local: LocalSettings, latents: np.ndarray) -> np.ndarray:
    model = build_student(local.spec)
    parts = unflatten(torch.from_numpy(latents), list(model.parameters()))
    load_latents(model, parts, local.spec.precision)
    return flatten(list(model.parameters())).numpy()


@pytest.mark.parametrize("student", SMALLEST)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-6, 0.1, 1.0, 30.0]))
def test_a_study_that_continues_starts_at_exactly_the_released_student(
    make_local: LocalMaker, student: str, seed: int, size: float
) -> None:
    local = make_local(student=student)
    latents = (size * np.random.default_rng(seed).normal(size=len(_latents(local)))).astype(np.float32)
    latents[: len(latents) // 3] = 0.0  # channels without a single weight
    found = latents_of(to_onnx(local, latents), local)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(_quantised(local, found), _quantised(local, latents))


@pytest.mark.parametrize("student", SMALLEST)
@pytest.mark.parametrize(
    "change",
    [
        {"channels": 3},
        {"height": 64, "width": 64},
        {"classes": ("a", "b", "c"), "task": "multi-class"},
    ],
)
def test_a_student_of_another_shape_is_refused(
    make_local: LocalMaker, student: str, change: dict[str, object]
) -> None:
    local = make_local(student=student)
    with pytest.raises((KeyError, ValueError)):
        latents_of(to_onnx(local, _latents(local)), make_local(student=student, **change))


@pytest.mark.parametrize(("student", "other"), permutations(SMALLEST, 2))
def test_another_student_is_refused(make_local: LocalMaker, student: str, other: str) -> None:
    local = make_local(student=student)
    with pytest.raises((KeyError, ValueError)):
        latents_of(to_onnx(local, _latents(local)), make_local(student=other))


def test_a_vector_of_another_length_is_no_student(make_local: LocalMaker) -> None:
    with pytest.raises(ValueError, match="does not fill"):
        to_onnx(make_local(), np.zeros(7, np.float32))
