"""Public reference data: halves that never change and never meet, and a Fisher that is what its name says."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import DatasetRefused
from fedward.common.images import to_tensor
from fedward.common.losses import classification
from fedward.common.models import SMALLEST, build_student, flatten, initialise, unflatten
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator
from fedward.server.reference import (
    class_prior,
    fisher_diagonal,
    halve,
    logit_fisher_diagonal,
    measure,
    student_logits,
)
from fedward.simulations.phantoms import make_phantoms

LocalMaker = Callable[..., LocalSettings]


def _numbered(count: int) -> Split:
    """Every image says its own number."""
    images = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 2, 2, 1)
    return Split(images, np.arange(count, dtype=np.int64))


def _numbers(records: Split) -> list[int]:
    return [int(number) for number in records.images.reshape(-1, 4).copy().view("<u4")[:, 0]]


def _latents(settings: LocalSettings, seed: int = 0) -> np.ndarray:
    model = build_student(settings.spec)
    initialise(model, KeyedGenerator.from_seed(seed))
    return flatten(list(model.parameters())).numpy()


@given(st.integers(2, 300))
def test_the_halves_are_disjoint_and_cover_everything(count: int) -> None:
    halves = halve(_numbered(count))
    a, b = _numbers(halves.calibration), _numbers(halves.evaluation)
    assert sorted(a + b) == list(range(count))
    assert len(a) == count // 2
    assert a == halves.calibration.labels.tolist()
    assert b == halves.evaluation.labels.tolist()


def test_the_halves_are_the_same_for_ever() -> None:
    """Figures of two studies can be compared only if B is B; so the very permutation is held here."""
    order = _numbers(halve(_numbered(1000)).calibration)
    assert order[:8] == [34, 382, 857, 772, 724, 864, 662, 985]
    digest = hashlib.sha256(np.array(order, "<u4").tobytes()).hexdigest()
    assert digest == "2facd2aa9712055e7b5d89695d36d447984bd32fab1af43b1353cfb028298402"


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_records_for_two_halves_are_refused_by_name(count: int) -> None:
    with pytest.raises(DatasetRefused, match="at least two"):
        halve(_numbered(count))


def test_a_prior_is_the_public_frequency_and_never_nought() -> None:
    prior = class_prior(Split(np.zeros((8, 2, 2, 1), np.uint8), np.array([0, 0, 0, 0, 0, 0, 1, 1])), 3)
    assert sum(prior) == pytest.approx(1.0)
    assert prior[0] / prior[1] == pytest.approx(3.0)
    assert prior[2] == pytest.approx(0.01 / 1.01)
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 0]])
    assert class_prior(Split(np.zeros((4, 2, 2, 1), np.uint8), labels), 2) == (0.75, 0.01)


@pytest.mark.parametrize("student", SMALLEST)
def test_logits_are_those_of_the_quantised_student_in_any_batching(
    make_local: LocalMaker, phantom: ImageDataset, student: str
) -> None:
    local = make_local(student=student)
    latents, images = _latents(local), np.repeat(phantom.test.images, 20, axis=0)
    model = build_student(local.spec)
    parts = unflatten(torch.from_numpy(latents), list(model.parameters()))
    load_latents(model, parts, local.spec.precision)
    with torch.no_grad():
        expected = model(to_tensor(images)).numpy()
    np.testing.assert_allclose(student_logits(local, latents, images), expected, atol=1e-5)


def test_the_figures_are_those_of_the_decisions_at_the_thresholds(
    make_local: LocalMaker, phantom: ImageDataset
) -> None:
    local = make_local()
    latents = _latents(local)
    scores = np.diff(student_logits(local, latents, phantom.val.images))[:, 0]
    for bar in (0.0, float(np.median(scores))):
        accuracy = float(((scores > bar) == phantom.val.labels).mean())
        assert measure(local, latents, phantom.val, (bar,))["accuracy"] == pytest.approx(accuracy)


def _fisher_by_a_loop(local: LocalSettings, latents: np.ndarray, records: Split) -> np.ndarray:
    """The definition: one record at a time, autograd on the whole network, squares, mean, scale."""
    model = build_student(local.spec)
    parts = unflatten(torch.from_numpy(latents), list(model.parameters()))
    load_latents(model, parts, local.spec.precision)
    total = torch.zeros(len(latents), dtype=torch.float64)
    for image, label in zip(records.images, records.labels, strict=True):
        logits = model(to_tensor(image[np.newaxis]))
        loss = classification(logits, torch.from_numpy(np.asarray(label)[np.newaxis]), local.task)
        total += flatten(list(torch.autograd.grad(loss.sum(), list(model.parameters())))).double() ** 2
    mean = total / len(records.images)
    return (mean / mean.mean()).numpy()


@pytest.mark.parametrize("student", SMALLEST)
def test_fisher_is_the_mean_of_squared_gradients_of_single_records(
    make_local: LocalMaker, phantom: ImageDataset, student: str
) -> None:
    local = make_local(student=student)
    records = Split(phantom.val.images[:6], phantom.val.labels[:6])
    found = fisher_diagonal(local, _latents(local), records)
    expected = _fisher_by_a_loop(local, _latents(local), records)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    assert found.mean() == pytest.approx(1.0, rel=1e-4)
    assert found.min() >= 0.0


def test_fisher_of_several_labels_at_once(make_local: LocalMaker) -> None:
    findings = make_phantoms("findings", size=16, counts=(6, 3, 3), seed=0)
    local = make_local(task="multi-label", classes=findings.classes)
    found = fisher_diagonal(local, _latents(local), findings.train)
    expected = _fisher_by_a_loop(local, _latents(local), findings.train)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def _logit_fisher_by_a_loop(local: LocalSettings, latents: np.ndarray, records: Split) -> np.ndarray:
    model = build_student(local.spec)
    load_latents(model, unflatten(torch.from_numpy(latents), list(model.parameters())), local.spec.precision)
    total = torch.zeros(len(latents), dtype=torch.float64)
    for image in records.images:
        for column in range(len(local.classes)):
            logits = model(to_tensor(image[None]))[0]
            own = logits[column] if local.task == "multi-label" else logits[column] - logits.mean()
            gradients = torch.autograd.grad(own, list(model.parameters()))
            total += flatten(list(gradients)).double().square()
    return (total / total.mean()).numpy()


def test_the_logits_fisher_is_the_mean_square_of_each_logits_own_gradient(
    make_local: LocalMaker, phantom: ImageDataset
) -> None:
    local = make_local()
    records = Split(phantom.val.images[:6], phantom.val.labels[:6])
    found = logit_fisher_diagonal(local, _latents(local), records)
    expected = _logit_fisher_by_a_loop(local, _latents(local), records)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_the_logits_fisher_of_several_labels_at_once(make_local: LocalMaker) -> None:
    findings = make_phantoms("findings", size=16, counts=(4, 3, 3), seed=0)
    local = make_local(task="multi-label", classes=findings.classes)
    found = logit_fisher_diagonal(local, _latents(local), findings.train)
    expected = _logit_fisher_by_a_loop(local, _latents(local), findings.train)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_the_logits_fisher_reads_no_label(make_local: LocalMaker, phantom: ImageDataset) -> None:
    local = make_local()
    images, labels = phantom.val.images[:6], phantom.val.labels[:6]
    found = [
        logit_fisher_diagonal(local, _latents(local), Split(images, each)) for each in (labels, 1 - labels)
    ]
    np.testing.assert_array_equal(*found)


@given(st.integers(1, 3))
@settings(max_examples=3, deadline=None)
def test_fisher_does_not_depend_on_the_batching(
    make_local: LocalMaker, phantom: ImageDataset, size: int
) -> None:
    local, latents = make_local(), _latents(make_local())
    whole = fisher_diagonal(local, latents, phantom.val)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fedward.server.reference._BATCH", size * 5)
        np.testing.assert_allclose(fisher_diagonal(local, latents, phantom.val), whole, rtol=1e-3, atol=1e-5)


def test_a_student_that_learns_nothing_has_a_fisher_of_noughts(
    make_local: LocalMaker, phantom: ImageDataset
) -> None:
    """All-zero latents give no gradient anywhere but at the last bias; nothing is divided by nought."""
    local = make_local()
    found = fisher_diagonal(local, np.zeros_like(_latents(local)), phantom.val)
    assert np.isfinite(found).all()
