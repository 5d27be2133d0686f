"""A hospital's round: the real training step against batches of one, and a mechanism of public constants."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedward.client import training
from fedward.client.dp_sgd import grid_step
from fedward.client.ewc import ElasticPull
from fedward.client.latent import LatentSGD
from fedward.client.training import LocalRound, UnitGradients, train
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.images import augment, to_tensor
from fedward.common.models import SMALLEST, build_student, flatten, frozen_count, initialise, unflatten
from fedward.common.quantization import fake_quantize
from fedward.common.randomness import KeyedGenerator

torch.set_num_threads(1)
SIDE = 16
TASKS = {"binary": 2, "multi-class": 3, "multi-label": 4}


def study(**changes: Any) -> LocalSettings:
    values: dict[str, Any] = {
        "student": "fp32-cnn",
        "channels": 1,
        "height": SIDE,
        "width": SIDE,
        "classes": ("normal", "pneumonia"),
        "task": "binary",
        "unit": "image",
        "sample_rate": 0.5,
        "local_steps": 1,
        "rounds": 10,
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "target_delta": 1e-5,
        "views": 1,
        "augmentation": "none",
        "class_prior": None,
        "ewc_lambda": 0.0,
        "distillation_alpha": 0.0,
        "distillation_temperature": 2.0,
    }
    return LocalSettings(**(values | changes))


def records(count: int, channels: int = 1, task: str = "binary", seed: int = 0) -> Split:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, SIDE, SIDE, channels), dtype=np.uint8)
    shape, top = ((count, 4), 2) if task == "multi-label" else ((count,), TASKS[task])
    return Split(images, random.integers(0, top, shape, dtype=np.int64))


def start(settings_: LocalSettings, seed: int = 0) -> Tensor:
    model = build_student(settings_.spec)
    initialise(model, KeyedGenerator.from_seed(seed, "start"))
    return flatten(list(model.parameters()))


def work(settings_: LocalSettings, declared: int = 20, **changes: Any) -> LocalRound:
    return LocalRound(settings_, changes.pop("learning_rate", 0.5), declared, start(settings_), **changes)


def key(seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator.from_seed(seed, "round")


def change(round_: LocalRound, split: Split, seed: int = 0) -> Tensor:
    return train(round_, split, key(seed))[0]


class Recorder:
    """Stands where the private optimizer stands, and keeps the units' gradients that it is handed.

    Blanks, whose gradients are all zero, are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.none = [torch.zeros(0, *part.shape) for part in model.parameters()]
        self.batches: list[list[Tensor]] = []
        self.steps = 0

    def accumulate(self, gradients: list[Tensor]) -> None:
        is_unit = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).any(dim=1)
        self.batches.append([gradient[is_unit] for gradient in gradients])

    def finish(self) -> None:
        self.steps += 1

    def gradients(self) -> list[Tensor]:
        return [torch.cat(parts) for parts in zip(self.none, *self.batches, strict=True)]


def real_gradients(round_: LocalRound, split: Split) -> tuple[nn.Sequential, Recorder]:
    """Per-unit gradients of the first local step, from the code that `train` runs."""
    model = build_student(round_.settings.spec)
    latents = [part.clone() for part in unflatten(round_.latents, list(model.parameters()))]
    LatentSGD(model, latents, round_.settings.spec.precision, 1.0)
    recorder = Recorder(model)
    UnitGradients(model, round_, split, key()).accumulate(recorder, 0)  # type: ignore[arg-type]
    return model, recorder


def one_row_loss(logits: Tensor, label: Tensor, teacher: Tensor | None, settings_: LocalSettings) -> Tensor:
    """The loss of one row as the documents say it, written a second time."""
    prior, alpha, heat = (
        settings_.class_prior,
        settings_.distillation_alpha,
        settings_.distillation_temperature,
    )
    if settings_.task == "multi-label":
        shift = torch.zeros(4) if prior is None else torch.logit(torch.tensor(prior))
        hard = F.binary_cross_entropy_with_logits(logits[0] + shift, label.float())
    else:
        shift = torch.zeros(logits.shape[1]) if prior is None else torch.tensor(prior).log()
        hard = F.cross_entropy(logits + shift, label[None])
    if teacher is None:
        return hard
    if settings_.task == "multi-label":
        p, q = torch.sigmoid(teacher[0] / heat), torch.sigmoid(logits[0] / heat)
        soft = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    else:
        soft = F.kl_div(
            torch.log_softmax(logits / heat, 1), torch.softmax(teacher / heat, 1), reduction="batchmean"
        )
    return (1 - alpha) * hard + alpha * heat**2 * soft


def by_batches_of_one(model: nn.Sequential, round_: LocalRound, split: Split) -> list[Tensor]:
    """Each drawn unit's gradient as the mean over its views of plain autograd on one row at a time.

    The row is filled up with blanks to the step's public shape: in another shape rounding could carry an
    activation across ReLU's kink, which is no fault of the gradients.
    """
    settings_, parameters = round_.settings, list(model.parameters())
    draws = key().derive("step", 0)
    drawn = draws.derive("poisson").poisson_sample(len(split.images), settings_.sample_rate)
    rows = np.repeat(drawn, settings_.views)
    size = training.PHYSICAL_ROWS // settings_.views * settings_.views
    assert len(rows) <= size
    images = augment(
        training.filled(to_tensor(split.images[rows]), size), settings_.augmentation, draws.derive("views")
    )
    teacher = None
    if round_.teacher is not None:
        teacher = build_student(settings_.spec)
        nn.utils.vector_to_parameters(round_.teacher, teacher.parameters())
    gradients = []
    for row in range(len(rows)):
        image, label = (
            training.filled(images[row : row + 1], size),
            torch.from_numpy(split.labels[rows])[row],
        )
        shown = None if teacher is None else teacher(image)[:1].detach()
        loss = one_row_loss(model(image)[:1], label, shown, settings_)
        gradients.append(torch.autograd.grad(loss, parameters))
    stacked = [
        torch.stack(parts).unflatten(0, (-1, settings_.views))  # type: ignore[no-untyped-call]
        for parts in zip(*gradients, strict=True)
    ]
    return [gradient.mean(dim=1) for gradient in stacked]


@pytest.mark.parametrize(
    ("student", "channels", "task", "views"), itertools.product(SMALLEST, (1, 3), TASKS, (1, 3))
)
def test_the_real_steps_gradients_equal_batches_of_one(
    student: str, channels: int, task: str, views: int
) -> None:
    settings_ = study(
        student=student,
        channels=channels,
        task=task,
        classes=tuple("abcd"[: TASKS[task]]),
        views=views,
        augmentation="affine" if views > 1 else "none",
    )
    round_, split = work(settings_), records(6, channels, task)
    model, recorder = real_gradients(round_, split)
    expected = by_batches_of_one(model, round_, split)
    assert len(expected[0]) >= 2
    for ours, theirs in zip(recorder.gradients(), expected, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_prior_and_teacher_enter_the_real_steps_gradients_exactly(task: str) -> None:
    classes = TASKS[task]
    prior = (0.1, 0.3, 0.8, 0.5) if task == "multi-label" else (0.7, *[0.3 / (classes - 1)] * (classes - 1))
    settings_ = study(
        student="ternary-cnn",
        task=task,
        classes=tuple("abcd"[:classes]),
        class_prior=prior,
        distillation_alpha=0.4,
        distillation_temperature=3.0,
    )
    round_ = dataclasses.replace(work(settings_), teacher=start(settings_, seed=1))
    split = records(6, 1, task)
    model, recorder = real_gradients(round_, split)
    for ours, theirs in zip(recorder.gradients(), by_batches_of_one(model, round_, split), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_and_an_empty_one_have_their_shapes() -> None:
    for count in (0, 1):
        settings_ = study(sample_rate=1.0 if count else 1e-6)
        model, recorder = real_gradients(work(settings_), records(1))
        assert recorder.steps == 1
        assert [len(gradient) for gradient in recorder.gradients()] == [count] * len(list(model.parameters()))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 8), st.integers(0, 1000), st.sampled_from([0.05, 1.0]), st.sampled_from([1, 2]))
def test_one_record_more_moves_the_noiseless_round_by_at_most_the_clip(
    count: int, seed: int, clip: float, views: int
) -> None:
    settings_ = study(sample_rate=1.0, noise_multiplier=0.0, max_grad_norm=clip, views=views)
    settings_ = dataclasses.replace(settings_, augmentation="affine" if views > 1 else "none")
    round_, whole = work(settings_, declared=10, learning_rate=1.0), records(count + 1, seed=seed)
    neighbour = Split(whole.images[:count], whole.labels[:count])
    moved = (change(round_, whole) - change(round_, neighbour)).double().norm() * 10
    # The sums differ by at most the clip; float32 rounds them, and latents of about 1.
    slack = 10 * 2.0**-23 * math.sqrt(len(round_.latents))
    assert moved <= clip + slack
    assert moved > 0


def test_the_same_key_gives_the_same_bits_and_another_key_another_round() -> None:
    round_ = work(study(student="ternary-cnn", local_steps=2, augmentation="affine", views=2))
    one = change(round_, records(10))
    assert torch.equal(change(round_, records(10)), one)
    assert not torch.isclose(change(round_, records(10), seed=1), one).all()


def test_drawing_from_the_rounds_generator_before_changes_nothing() -> None:
    generator = key()
    generator.bytes(1000)
    assert torch.equal(train(work(study()), records(5), generator)[0], change(work(study()), records(5)))


def test_a_round_of_no_drawn_unit_is_pure_noise_over_the_public_denominator() -> None:
    settings_ = study(sample_rate=1e-6, noise_multiplier=1.5, max_grad_norm=0.5)
    round_ = work(settings_, declared=30, learning_rate=1e-7)
    draws = key().derive("noise").normal(len(round_.latents))
    grid = grid_step(0.5)
    expected = -1e-7 * np.rint(draws * 1.5 * 0.5 / grid) * grid / (1e-6 * 30)
    actual = change(round_, records(3)).numpy()
    assert np.abs(actual - expected).max() < 1e-6
    assert actual.std() == pytest.approx(1e-7 * 1.5 * 0.5 / 3e-5, rel=0.02)


def test_every_local_step_has_noise_of_its_own() -> None:
    quiet = {"sample_rate": 1e-6, "noise_multiplier": 1.0}
    one = change(work(study(**quiet), learning_rate=1e-6), records(1)).double()
    four = change(work(study(**quiet, local_steps=4), learning_rate=1e-6), records(1)).double()
    assert float(four.std() / one.std()) == pytest.approx(2.0, rel=0.03)


def test_the_denominator_is_rate_times_declared_count_whatever_was_drawn() -> None:
    settings_ = study(sample_rate=1.0, noise_multiplier=0.0)
    small, large = (work(settings_, declared) for declared in (20, 2000))
    for split in (records(3), records(12)):
        assert torch.allclose(change(small, split), 100 * change(large, split), rtol=1e-2, atol=1e-5)
    # Twice the same records: twice the update, since nothing divides by the batch.
    once, base = records(4), change(small, records(4))
    twice = Split(np.concatenate([once.images] * 2), np.concatenate([once.labels] * 2))
    assert torch.allclose(change(small, twice), 2 * base, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize(("views", "augmentation"), [(1, "none"), (1, "affine"), (3, "shift")])
def test_physical_batches_of_another_size_change_no_more_than_rounding(
    rows: int, views: int, augmentation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_, split = work(study(views=views, augmentation=augmentation)), records(20)
    whole = change(round_, split)
    monkeypatch.setattr(training, "PHYSICAL_ROWS", rows)
    assert torch.allclose(change(round_, split), whole, atol=1e-6)


def test_memory_is_bounded_by_physical_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PHYSICAL_ROWS", 6)
    _, recorder = real_gradients(work(study(sample_rate=1.0, views=2)), records(10))
    assert [len(batch[0]) for batch in recorder.batches] == [3, 3, 3, 1]
    assert recorder.steps == 1


@pytest.mark.parametrize("split", [records(3), records(1), Split(records(6).images, np.ones(6, np.int64))])
@pytest.mark.parametrize("student", ["ternary-cnn", "int8-depthwise"])
def test_a_tiny_hospital_and_one_with_a_single_class_train(student: str, split: Split) -> None:
    settings_ = study(student=student, local_steps=4, class_prior=(0.3, 0.7))
    update, accountant = train(work(settings_, 10), split, key())
    assert update.isfinite().all()
    assert update.abs().max() > 0
    assert accountant.history == [(1.0, 0.5, 4)]


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize(("rate", "steps", "sigma"), [(0.25, 1, 0.9), (1.0, 3, 2.5), (1e-4, 5, 1.1)])
def test_the_history_is_exactly_the_public_mechanism(
    count: int, rate: float, steps: int, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PHYSICAL_ROWS", 8)
    settings_ = study(sample_rate=rate, local_steps=steps, noise_multiplier=sigma)
    _, accountant = train(work(settings_), records(count), key())
    assert accountant.history == [(sigma, rate, steps)]


def test_records_beyond_the_declared_count_take_no_part() -> None:
    round_, whole = work(study(sample_rate=1.0), declared=10), records(14)
    assert torch.equal(change(round_, whole), change(round_, Split(whole.images[:10], whole.labels[:10])))


def test_rate_one_takes_every_record_in_every_step() -> None:
    _, recorder = real_gradients(work(study(sample_rate=1.0)), records(9))
    assert len(recorder.gradients()[0]) == 9


def test_steps_draw_samples_of_their_own() -> None:
    round_ = work(study(sample_rate=0.5))
    model = build_student(round_.settings.spec)
    nn.utils.vector_to_parameters(round_.latents, model.parameters())
    recorder = Recorder(model)
    gradients = UnitGradients(model, round_, records(30), key())
    for local_step in range(3):
        gradients.accumulate(recorder, local_step)  # type: ignore[arg-type]
    heads = [batch[-1] for batch in recorder.batches]
    assert any(len(a) != len(b) or not torch.equal(a, b) for a, b in itertools.pairwise(heads))


def test_the_global_model_that_came_in_is_left_alone() -> None:
    round_ = work(study(student="ternary-cnn"))
    before = round_.latents.clone()
    change(round_, records(5))
    assert torch.equal(round_.latents, before)


def test_the_learning_rate_scales_the_update() -> None:
    one, two = (change(work(study(), learning_rate=rate), records(8)) for rate in (0.25, 0.5))
    assert torch.allclose(two, 2 * one, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("student", SMALLEST)
def test_the_round_computes_with_quantised_weights_in_every_step(
    student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Tensor]] = []

    class Watching(UnitGradients):
        def _parts(self, units: np.ndarray, draws: KeyedGenerator) -> Iterator[list[Tensor]]:
            seen.append([parameter.detach().clone() for parameter in self._engine._model.parameters()])
            return super()._parts(units, draws)

    monkeypatch.setattr(training, "UnitGradients", Watching)
    settings_ = study(student=student, local_steps=3)
    change(work(settings_), records(3))
    precision, begun = settings_.spec.precision, unflatten(start(settings_), seen[0])
    assert all(torch.equal(a, fake_quantize(b, precision)) for a, b in zip(seen[0], begun, strict=True))
    for weights in itertools.chain(*seen):
        assert torch.equal(fake_quantize(weights, precision), weights)
    assert not torch.equal(flatten(seen[0]), flatten(seen[2]))


def test_a_teacher_works_on_an_empty_batch_and_changes_nothing_at_alpha_0() -> None:
    settings_ = study(sample_rate=1e-6, distillation_alpha=0.5)
    taught = dataclasses.replace(work(settings_), teacher=start(settings_, 1))
    assert torch.equal(change(taught, records(3)), change(work(settings_), records(3)))
    plain = study()
    taught = dataclasses.replace(work(plain), teacher=start(plain, 1))
    assert torch.equal(change(taught, records(8)), change(work(plain), records(8)))


def test_the_pull_acts_on_the_noised_latents_in_closed_form() -> None:
    settings_ = study(student="ternary-cnn")
    plain = work(settings_)
    model = list(build_student(settings_.spec).parameters())
    anchor, fisher = start(settings_, 7), torch.rand(len(plain.latents))
    pull = ElasticPull(unflatten(anchor, model), unflatten(fisher, model), 3.0)
    strength = 0.5 * 3.0 * fisher
    expected = (plain.latents + change(plain, records(9)) + strength * anchor) / (1 + strength)
    actual = plain.latents + change(dataclasses.replace(plain, pull=pull), records(9))
    assert torch.allclose(actual, expected, atol=1e-6)


def test_a_model_made_to_overflow_on_a_chosen_record_does_not_tell_whether_it_is_there() -> None:
    settings_ = study(sample_rate=1.0, noise_multiplier=0.0)
    black = np.zeros((1, SIDE, SIDE, 1), np.uint8)
    grey = np.full((4, SIDE, SIDE, 1), 127, np.uint8)
    hostile = dataclasses.replace(work(settings_), latents=3e38 * start(settings_).sign())
    target = Split(np.concatenate([grey, black]), np.zeros(5, np.int64))
    _, recorder = real_gradients(hostile, target)
    assert not all(gradient.isfinite().all() for gradient in recorder.gradients())
    assert change(hostile, target).isfinite().all()


@pytest.mark.parametrize("student", SMALLEST)
def test_a_study_of_the_head_changes_the_head_alone_and_by_the_head_s_own_gradient(student: str) -> None:
    # No clip binds and the noise is next to nothing: then it does not matter what else is trained.
    quiet: dict[str, Any] = {"student": student, "max_grad_norm": 128.0, "noise_multiplier": 1e-9}
    whole, head = (change(work(study(**quiet, trained=trained)), records(6)) for trained in ("all", "head"))
    assert 0 < len(head) == len(whole) - frozen_count(study(student=student).spec, "head") < len(whole)
    assert torch.allclose(whole[-len(head) :], head, atol=1e-3)
    assert head.abs().max() > 0.02
