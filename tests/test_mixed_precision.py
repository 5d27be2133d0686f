"""Bits by weight: within the bytes, taken where the public loss minds least, computed as trained."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedward.client.latent import LatentSGD
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import SettingRefused
from fedward.common.images import to_tensor
from fedward.common.models import build_student, flatten, initialise, quantized_weights, unflatten
from fedward.common.quantization import fake_quantize
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import bits_of, latents_of, to_onnx
from fedward.server.mixed_precision import _one_lower, bit_sensitivities, model_bytes, with_bits_within
from fedward.server.reference import student_logits
from fedward.server.release import run_onnx

LocalMaker = Callable[..., LocalSettings]
STUDENTS = ["int8-cnn", "int8-depthwise", "int8-mobile", "int8-vit"]


def start(local: LocalSettings, seed: int = 0) -> np.ndarray:
    model = build_student(local.spec)
    initialise(model, KeyedGenerator.from_seed(seed))
    return flatten(list(model.parameters())).numpy()


def mixed(local: LocalSettings, seed: int = 0) -> LocalSettings:
    rng = np.random.default_rng(seed)
    return replace(local, bits=tuple(int(b) for b in rng.choice([2, 4, 8], quantized_weights(local.spec))))


@pytest.mark.parametrize("student", STUDENTS)
def test_the_graph_computes_with_each_weights_own_bits(
    make_local: LocalMaker, student: str, phantom: ImageDataset
) -> None:
    local = mixed(make_local(student=student))
    latents, images = start(local), phantom.val.images[:4]
    graph = to_onnx(local, latents)
    found = run_onnx(graph, to_tensor(images).numpy())
    np.testing.assert_allclose(found, student_logits(local, latents, images), atol=1e-4)
    assert not np.array_equal(
        found, run_onnx(to_onnx(make_local(student=student), latents), to_tensor(images).numpy())
    )


@pytest.mark.parametrize("student", STUDENTS)
def test_a_mixed_release_is_read_again_with_its_bits(make_local: LocalMaker, student: str) -> None:
    whole = make_local(student=student)
    local = mixed(whole)
    graph = to_onnx(local, start(local))
    assert bits_of(graph, whole.spec) == local.bits
    assert to_onnx(local, latents_of(graph, local)) == graph
    with pytest.raises(ValueError, match="is not int8 in the release"):
        latents_of(graph, whole)


@pytest.mark.parametrize("student", ["int8-cnn", "ternary-cnn", "fp32-vit"])
def test_a_student_of_one_precision_names_no_bits(make_local: LocalMaker, student: str) -> None:
    local = make_local(student=student)
    assert bits_of(to_onnx(local, start(local)), local.spec) is None


def test_the_latent_step_writes_each_weight_in_its_own_bits(make_local: LocalMaker) -> None:
    local = make_local(student="int8-cnn", bits=(8, 2, 4, 8))
    model = build_student(local.spec)
    latents = [part.clone() for part in unflatten(torch.from_numpy(start(local)), list(model.parameters()))]
    optimizer = LatentSGD(model, latents, local.spec.precisions, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    names = iter(("int8", "ternary", "int4", "int8"))
    for parameter, latent in zip(model.parameters(), latents, strict=True):
        precision = next(names) if parameter.dim() > 1 else "fp32"
        assert torch.equal(parameter.detach(), fake_quantize(latent, precision))


@pytest.mark.parametrize("student", ["int8-cnn", "int8-depthwise"])
def test_the_model_file_is_within_its_bytes(
    make_local: LocalMaker, student: str, phantom: ImageDataset
) -> None:
    local = make_local(student=student)
    latents = start(local)
    few = Split(phantom.val.images[:8], phantom.val.labels[:8])
    full = model_bytes(local, latents)
    sizes = []
    for share in (1.1, 0.7, 0.4):
        found = with_bits_within(local, latents, few, int(share * full))
        assert model_bytes(found, latents) <= 0.97 * share * full
        sizes.append(sum(found.bits or ()))
    assert sizes[0] == 8 * quantized_weights(local.spec)
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_budget_that_just_fits_is_not_filled_since_training_packs_worse(
    make_local: LocalMaker, phantom: ImageDataset
) -> None:
    local = make_local(student="int8-cnn")
    latents, few = start(local), Split(phantom.val.images[:8], phantom.val.labels[:8])
    full = model_bytes(local, latents)
    assert model_bytes(with_bits_within(local, latents, few, full), latents) <= 0.97 * full


def test_a_weight_that_does_nothing_loses_its_bits_first() -> None:
    careless, careful = {8: 0.0, 4: 0.0, 2: 0.0}, {8: 0.0, 4: 0.5, 2: 2.0}
    assert _one_lower((8, 8), [careful, careless], [100, 100]) == (8, 2)
    assert _one_lower((8, 2), [careful, careless], [100, 100]) == (4, 2)
    assert _one_lower((4, 2), [careful, careless], [100, 100]) == (2, 2)


def test_of_two_that_mind_alike_the_larger_goes_first() -> None:
    alike = {8: 0.0, 4: 0.1, 2: 0.1}
    assert _one_lower((8, 8), [alike, alike], [10, 1000]) == (8, 2)


def test_fewer_bits_never_seem_to_cost_less(make_local: LocalMaker, phantom: ImageDataset) -> None:
    local = make_local(student="int8-cnn")
    rises = bit_sensitivities(local, start(local), phantom.val)
    assert len(rises) == 4
    assert all(0.0 == own[8] <= own[4] <= own[2] for own in rises)
    assert max(own[2] for own in rises) > 0.0


def test_bytes_that_not_even_ternary_weights_keep_are_refused(
    make_local: LocalMaker, phantom: ImageDataset
) -> None:
    local = make_local(student="int8-cnn")
    with pytest.raises(SettingRefused, match=r"every weight ternary the model still takes [\d,]+ bytes"):
        with_bits_within(local, start(local), phantom.val, 1000)


@pytest.mark.parametrize("student", ["ternary-cnn", "fp32-cnn"])
def test_only_an_int8_student_is_weighed(make_local: LocalMaker, student: str, phantom: ImageDataset) -> None:
    local = make_local(student=student)
    with pytest.raises(SettingRefused, match="take int8-cnn"):
        with_bits_within(local, start(local), phantom.val, 10**6)
