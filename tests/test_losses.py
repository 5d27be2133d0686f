"""Losses by row: adjustment by a public prior, distillation, and no row that leaks into another's."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedward.common.losses import classification, distillation, prior_offset

torch.set_num_threads(1)
TASKS = ("binary", "multi-class", "multi-label")


def logits(rows: int, classes: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(task: str, rows: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    shape, top = ((rows, classes), 2) if task == "multi-label" else ((rows,), classes)
    return torch.randint(0, top, shape, generator=generator)


def classes_of(task: str) -> int:
    return 2 if task == "binary" else 4


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), st.integers(0, 100))
def test_logit_adjustment_is_cross_entropy_on_logits_shifted_by_log_prior(
    weights: list[float], seed: int
) -> None:
    prior = tuple(weight / sum(weights) for weight in weights)
    shown = logits(5, len(prior), seed).float()
    labels = torch.arange(5) % len(prior)
    expected = F.cross_entropy(shown + torch.tensor(prior).log(), labels, reduction="none")
    actual = classification(shown, labels, "multi-class", prior_offset(prior, "multi-class"))
    assert torch.allclose(actual, expected, atol=1e-5)


def test_adjustment_by_a_uniform_prior_changes_nothing() -> None:
    shown, labels = logits(6, 4).float(), labels_of("multi-class", 6, 4)
    offset = prior_offset((0.25,) * 4, "multi-class")
    plain = classification(shown, labels, "multi-class")
    assert torch.allclose(classification(shown, labels, "multi-class", offset), plain, atol=1e-6)


def test_the_adjusted_optimum_decides_under_a_balanced_prior() -> None:
    # Where an image says nothing, the loss at the true prior is least for equal logits: threshold 0.
    prior = (0.9, 0.1)
    offset = prior_offset(prior, "binary")

    def expected_loss(margin: float) -> float:
        rows = torch.tensor([[0.0, margin], [0.0, margin]])
        losses = classification(rows, torch.tensor([0, 1]), "binary", offset)
        return float(losses @ torch.tensor(prior))

    assert expected_loss(0.0) < min(expected_loss(-0.2), expected_loss(0.2))


def test_without_a_prior_there_is_no_offset() -> None:
    assert prior_offset(None, "binary") is None


def test_the_multi_label_offset_is_the_logit_of_each_labels_rate() -> None:
    offset = prior_offset((0.5, 0.9, 0.1), "multi-label")
    assert offset is not None
    assert offset.tolist() == pytest.approx([0.0, math.log(9), -math.log(9)], rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_extreme_priors_stay_finite(task: str) -> None:
    offset = prior_offset((1.0, 1e-6), task)
    assert offset is not None
    assert offset.isfinite().all()


def test_multi_label_loss_is_the_mean_of_binary_losses_worked_out_by_hand() -> None:
    loss = classification(torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]]), "multi-label")
    assert loss.tolist() == pytest.approx([(math.log(2) + math.log(1 + math.exp(2))) / 2])


@pytest.mark.parametrize("task", TASKS)
def test_a_rows_loss_depends_on_that_row_only(task: str) -> None:
    classes = classes_of(task)
    shown, teacher, labels = logits(4, classes), logits(4, classes, 1), labels_of(task, 4, classes)
    hard, soft = classification(shown, labels, task), distillation(shown, teacher, 2.0, task)
    assert hard.shape == soft.shape == (4,)
    for row in range(4):
        one = slice(row, row + 1)
        assert torch.allclose(classification(shown[one], labels[one], task), hard[one])
        assert torch.allclose(distillation(shown[one], teacher[one], 2.0, task), soft[one])


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=15, deadline=None)
@given(temperature=st.floats(0.1, 100.0), seed=st.integers(0, 50))
def test_distillation_is_zero_at_equal_logits_and_positive_elsewhere(
    task: str, temperature: float, seed: int
) -> None:
    classes = classes_of(task)
    one, other = logits(3, classes, seed), logits(3, classes, seed + 100)
    assert distillation(one, one, temperature, task).abs().max() < 1e-9
    assert (distillation(one, other, temperature, task) > 0).all()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_distillation_scales_by_the_temperature_squared(task: str, temperature: float) -> None:
    one, other = logits(3, classes_of(task)), logits(3, classes_of(task), 7)
    scaled = distillation(one * temperature, other * temperature, temperature, task)
    assert torch.allclose(scaled, temperature**2 * distillation(one, other, 1.0, task))


@pytest.mark.parametrize("task", TASKS)
def test_distillation_goes_from_teacher_to_student(task: str) -> None:
    student, teacher = logits(1, classes_of(task)), logits(1, classes_of(task), 3)
    student.requires_grad_(True)
    distillation(student, teacher, 1.0, task).sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    probabilities = torch.sigmoid if task == "multi-label" else lambda values: torch.softmax(values, dim=1)
    expected = probabilities(student.detach()) - probabilities(teacher)
    if task == "multi-label":
        expected = expected / expected.shape[1]
    assert torch.allclose(student.grad, expected)


@pytest.mark.parametrize("task", TASKS)
def test_no_rows_give_no_losses(task: str) -> None:
    classes = classes_of(task)
    none = torch.zeros(0, classes)
    assert classification(none, labels_of(task, 0, classes), task).shape == (0,)
    assert distillation(none, none, 2.0, task).shape == (0,)


@pytest.mark.parametrize("task", TASKS)
def test_a_label_outside_the_classes_is_an_error(task: str) -> None:
    if task == "multi-label":
        with pytest.raises(ValueError, match="size"):
            classification(logits(1, 3), torch.ones(1, 4), task)
    else:
        with pytest.raises(IndexError, match="out of bounds"):
            classification(logits(1, 2), torch.tensor([2]), task)
