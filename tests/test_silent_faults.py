"""The faults that private training hides: for each a check, the real code that passes it, and the planted
fault that the same check catches. A check that cannot fail holds no promise.

Nothing crashes and no figure looks wrong when a penalty is dropped by the gradient engine or multiplied by
the clip factors, when the accountant's hook is overwritten, when a layer carries private values from record
to record, or when the sampling rate is read off a loader.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant
from torch import Tensor, nn

from fedward.client import training
from fedward.client.dp_sgd import KeyedDPOptimizer
from fedward.client.ewc import ElasticPull
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.latent import LatentSGD
from fedward.client.training import LocalRound, UnitGradients, train
from fedward.common import models
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.errors import RequestRefused, SettingRefused
from fedward.common.messages import LATENTS, TrainRequest
from fedward.common.models import SMALLEST, StudentSpec, build_student, flatten, initialise, unflatten
from fedward.common.per_sample import PerSampleGradients
from fedward.common.randomness import KeyedGenerator

torch.set_num_threads(1)
SIDE, DECLARED, RATE = 16, 20, 0.5
Patch = pytest.MonkeyPatch


def study(**changes: Any) -> LocalSettings:
    values: dict[str, Any] = {
        "student": "ternary-cnn",
        "channels": 1,
        "height": SIDE,
        "width": SIDE,
        "classes": ("normal", "pneumonia"),
        "task": "binary",
        "unit": "image",
        "sample_rate": RATE,
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


def records(count: int = 12) -> Split:
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8)
    return Split(images, random.integers(0, 2, count, dtype=np.int64))


def start(settings: LocalSettings, seed: int = 0) -> Tensor:
    model = build_student(settings.spec)
    initialise(model, KeyedGenerator.from_seed(seed, "start"))
    return flatten(list(model.parameters()))


def work(settings: LocalSettings | None = None, pull: ElasticPull | None = None) -> LocalRound:
    settings = settings or study()
    return LocalRound(settings, 0.5, DECLARED, start(settings), pull)


def key() -> KeyedGenerator:
    return KeyedGenerator.from_seed(11, "round")


def change(round_: LocalRound, split: Split | None = None) -> Tensor:
    return train(round_, split or records(), key())[0]


# Penalty: it must act, after clip and noise, and in closed form.

LAMBDA = 4.0


def elastic() -> ElasticPull:
    settings = study()
    like = list(build_student(settings.spec).parameters())
    fisher = torch.rand(sum(p.numel() for p in like), generator=torch.Generator().manual_seed(1))
    return ElasticPull(unflatten(start(settings, 5), like), unflatten(fisher, like), LAMBDA)


def check_penalty_acts_in_closed_form() -> None:
    """A round with the pull is the round without it, and then the proximal step."""
    plain, wanted = work(), elastic()
    strength = plain.learning_rate * LAMBDA * flatten(wanted.fisher_diagonal)
    moved = plain.latents + change(plain)
    expected = (moved + strength * flatten(wanted.anchor)) / (1 + strength)
    actual = plain.latents + change(work(pull=wanted))
    assert torch.allclose(actual, expected, atol=1e-6)


def penalty(model: nn.Module) -> Tensor:
    wanted = elastic()
    parts = zip(model.parameters(), wanted.anchor, wanted.fisher_diagonal, strict=True)
    return torch.stack([(f * (p - a).square()).sum() for p, a, f in parts]).sum() * LAMBDA / 2


def test_the_penalty_acts_in_closed_form() -> None:
    check_penalty_acts_in_closed_form()


def test_a_penalty_that_is_dropped_by_the_optimizer_is_caught(monkeypatch: Patch) -> None:
    class Dropping(LatentSGD):
        def __init__(
            self, model: nn.Module, latents: list[Tensor], precision: str, rate: float, _: Any
        ) -> None:
            super().__init__(model, latents, precision, rate, None)

    monkeypatch.setattr(training, "LatentSGD", Dropping)
    with pytest.raises(AssertionError):
        check_penalty_acts_in_closed_form()


def test_a_penalty_in_the_loss_is_dropped_by_the_engine_and_caught(monkeypatch: Patch) -> None:
    """As with Opacus' hooks: the parameters are no part of the graph, so loss + penalty loses the penalty."""
    honest, expected, used = UnitGradients._loss, change(work()), []

    def with_penalty(self: UnitGradients, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        used.append(float(penalty(self._engine._model).detach()))
        return honest(self, logits, labels, teacher) + penalty(self._engine._model)

    def planted(round_: LocalRound, split: Split, generator: KeyedGenerator) -> Any:
        if round_.pull is not None:
            monkeypatch.setattr(UnitGradients, "_loss", with_penalty)
        return training.train(dataclasses.replace(round_, pull=None), split, generator)

    monkeypatch.setitem(globals(), "train", planted)
    assert torch.equal(change(work(pull=elastic())), expected)  # no word, no trace: the fault is silent
    assert min(used) > 1.0
    monkeypatch.setattr(UnitGradients, "_loss", honest)
    with pytest.raises(AssertionError):
        check_penalty_acts_in_closed_form()


def check_penalty_stays_outside_the_clip() -> None:
    """What the private optimizer is handed, clips and sums is the same with the pull and without it."""
    assert torch.equal(clipped_sum(work(pull=elastic())), clipped_sum(work()))


def clipped_sum(round_: LocalRound) -> Tensor:
    """The sum before noise of a round's one step, float64 (n,)."""
    held: list[Tensor] = []

    class Watching(KeyedDPOptimizer):
        def add_noise(self) -> None:
            held.append(torch.cat([parameter.summed_grad.flatten() for parameter in self.params]))
            super().add_noise()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "KeyedDPOptimizer", Watching)
        change(round_)
    assert len(held) == 1
    return held[0]


def add_to_every_gradient(monkeypatch: Patch) -> None:
    """The penalty's gradient joins each unit's before the clip, as when it is a part of each unit's loss."""
    honest = UnitGradients._parts

    def with_penalty(self: UnitGradients, units: np.ndarray, draws: KeyedGenerator) -> Iterator[list[Tensor]]:
        extra = torch.autograd.grad(penalty(self._engine._model), list(self._engine._model.parameters()))
        for pulled in honest(self, units, draws):
            yield [gradient + part for gradient, part in zip(pulled, extra, strict=True)]

    def planted(round_: LocalRound, split: Split, generator: KeyedGenerator) -> Any:
        monkeypatch.setattr(UnitGradients, "_parts", with_penalty if round_.pull is not None else honest)
        return training.train(dataclasses.replace(round_, pull=None), split, generator)

    monkeypatch.setitem(globals(), "train", planted)


def test_the_penalty_stays_outside_the_clip() -> None:
    check_penalty_stays_outside_the_clip()


def test_a_penalty_multiplied_by_the_clip_factors_is_caught(monkeypatch: Patch) -> None:
    add_to_every_gradient(monkeypatch)
    with pytest.raises(AssertionError):
        check_penalty_stays_outside_the_clip()
    with pytest.raises(AssertionError):
        check_penalty_acts_in_closed_form()


def check_sum_is_bounded(round_: LocalRound) -> None:
    """No round's sum is longer than C a drawn unit."""
    draws = key().derive("step", 0).derive("poisson")
    units = len(draws.poisson_sample(len(records().images), round_.settings.sample_rate))
    assert units > 1
    assert clipped_sum(round_).norm() <= units * round_.settings.max_grad_norm * (1 + 1e-9)


def test_the_sum_is_bounded_whatever_the_pull() -> None:
    check_sum_is_bounded(work(pull=elastic()))


def test_a_penalty_that_breaks_the_sensitivity_bound_is_caught(monkeypatch: Patch) -> None:
    """As with ghost clipping: the penalty's gradient joins the sum behind the clip."""

    class Ghost(KeyedDPOptimizer):
        def clip_and_accumulate(self) -> None:
            super().clip_and_accumulate()
            for parameter in self.params:
                parameter.summed_grad = parameter.summed_grad + 8 * LAMBDA * parameter.detach().double()

    monkeypatch.setitem(globals(), "KeyedDPOptimizer", Ghost)
    with pytest.raises(AssertionError):
        check_sum_is_bounded(work())


# History: exactly the steps that were taken, at the public rate.


def check_history(count: int, settings: LocalSettings | None = None) -> None:
    settings = settings or study(local_steps=3, sample_rate=0.25)
    _, accountant = train(work(settings), records(count), key())
    expected = [(settings.noise_multiplier, settings.sample_rate, settings.local_steps)]
    assert accountant.history == expected


class Overwritten(KeyedDPOptimizer):
    """Somebody attaches a step hook of their own, and Opacus forgets the accountant's."""

    def attach_step_hook(self, fn: Callable[[Any], None]) -> None:
        super().attach_step_hook(fn)
        super().attach_step_hook(lambda optimizer: None)


@pytest.mark.parametrize("count", [1, 3, 64])
def test_the_history_holds_every_step_at_the_public_rate(count: int) -> None:
    check_history(count)


def test_an_overwritten_history_is_caught(monkeypatch: Patch) -> None:
    monkeypatch.setattr(training, "KeyedDPOptimizer", Overwritten)
    with pytest.raises(AssertionError):
        check_history(12)


def test_a_hospital_sends_nothing_when_its_history_was_overwritten(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    settings = study(noise_multiplier=0.0)
    create_hospital(tmp_path, "north", records(), None, 1e-5, seed=1)
    vectors = {LATENTS: encode(start(settings).numpy(), "fp32")}
    requests = [TrainRequest("study", number, settings, 0.5, ("fp32", "int8"), vectors) for number in (1, 2)]
    hospital = Hospital(tmp_path)
    assert len(hospital.answer(requests[0]).update) > 0
    monkeypatch.setattr(training, "KeyedDPOptimizer", Overwritten)
    with pytest.raises(RequestRefused, match="not those that were charged"):
        hospital.answer(requests[1])


class LoaderAccountant(PRVAccountant):  # type: ignore[misc]
    """q = 1 / len(loader), with batches of 30 over this hospital's 64 records: .33 for what is .25."""

    def get_optimizer_hook_fn(self, sample_rate: float) -> Any:
        return super().get_optimizer_hook_fn(1 / math.ceil(64 / 30))


def test_a_rate_read_off_a_loader_is_caught_in_the_history(monkeypatch: Patch) -> None:
    monkeypatch.setattr(training, "PRVAccountant", LoaderAccountant)
    with pytest.raises(AssertionError):
        check_history(64)


def test_a_hospital_sends_nothing_when_the_rate_was_read_off_a_loader(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    settings = study(noise_multiplier=0.0)
    create_hospital(tmp_path, "north", records(), None, 1e-5, seed=1)
    vectors = {LATENTS: encode(start(settings).numpy(), "fp32")}
    monkeypatch.setattr(training, "PRVAccountant", LoaderAccountant)
    with pytest.raises(RequestRefused, match="not those that were charged"):
        Hospital(tmp_path).answer(TrainRequest("study", 1, settings, 0.5, ("fp32", "int8"), vectors))


# Sampling: Poisson at the public rate, whatever the number of records; the denominator is public too.


def drawn_sizes(count: int, steps: int = 120) -> np.ndarray:
    sizes: list[int] = []

    class Counting(UnitGradients):
        def accumulate(self, optimizer: KeyedDPOptimizer, local_step: int) -> None:
            sizes.append(0)
            super().accumulate(optimizer, local_step)

        def _parts(self, units: np.ndarray, draws: KeyedGenerator) -> Iterator[list[Tensor]]:
            sizes[-1] += len(units)
            return iter(())

    settings = study(local_steps=steps, sample_rate=0.25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "UnitGradients", Counting)
        train(dataclasses.replace(work(settings), num_examples=100), records(count), key())
    return np.array(sizes)


def check_sampling_is_poisson_at_the_public_rate() -> None:
    for count in (8, 64):
        sizes, spread = drawn_sizes(count), count * 0.25 * 0.75
        assert abs(sizes.mean() - 0.25 * count) < 4 * math.sqrt(spread / len(sizes))
        assert 0.5 * spread < sizes.var() < 1.7 * spread


def test_sampling_is_poisson_at_the_public_rate() -> None:
    check_sampling_is_poisson_at_the_public_rate()


def test_shuffled_batches_of_one_size_are_caught(monkeypatch: Patch) -> None:
    def shuffled(self: KeyedGenerator, population: int, rate: float) -> np.ndarray:
        return self.permutation(population)[: round(rate * population)]

    monkeypatch.setattr(KeyedGenerator, "poisson_sample", shuffled)
    with pytest.raises(AssertionError):
        check_sampling_is_poisson_at_the_public_rate()


def test_a_rate_that_follows_the_private_count_is_caught(monkeypatch: Patch) -> None:
    honest = KeyedGenerator.poisson_sample

    def private(self: KeyedGenerator, population: int, rate: float) -> np.ndarray:
        return honest(self, population, min(1.0, 16 / population))

    monkeypatch.setattr(KeyedGenerator, "poisson_sample", private)
    with pytest.raises(AssertionError):
        check_sampling_is_poisson_at_the_public_rate()


def check_denominator_is_public() -> None:
    """Every record twice is twice the noiseless update: no count of what came divides it."""
    settings, once = study(sample_rate=1.0, noise_multiplier=0.0, student="fp32-cnn"), records(6)
    twice = Split(np.concatenate([once.images] * 2), np.concatenate([once.labels] * 2))
    assert torch.allclose(change(work(settings), twice), 2 * change(work(settings), once), atol=1e-6)


def test_the_denominator_is_public() -> None:
    check_denominator_is_public()


def test_a_denominator_that_counts_the_batch_is_caught(monkeypatch: Patch) -> None:
    class Averaging(KeyedDPOptimizer):
        _drawn = 0

        def clip_and_accumulate(self) -> None:
            self._drawn += int(self.params[0].grad_sample.flatten(1).any(dim=1).sum())
            super().clip_and_accumulate()

        def scale_grad(self) -> None:
            for parameter in self.params:
                parameter.grad /= max(1, self._drawn)

    monkeypatch.setattr(training, "KeyedDPOptimizer", Averaging)
    with pytest.raises(AssertionError):
        check_denominator_is_public()


# Clip and noise.


def check_one_record_moves_the_sum_by_at_most_the_clip() -> None:
    settings, whole = study(sample_rate=1.0, student="fp32-cnn", max_grad_norm=0.1), records(8)
    neighbour = Split(whole.images[:7], whole.labels[:7])
    sums = []
    for split in (whole, neighbour):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "records", lambda split=split: split)
            sums.append(clipped_sum(work(settings)))
    assert 0 < (sums[0] - sums[1]).norm() <= 0.1


def test_one_record_moves_the_sum_by_at_most_the_clip() -> None:
    check_one_record_moves_the_sum_by_at_most_the_clip()


def test_a_clip_by_parameter_is_caught(monkeypatch: Patch) -> None:
    class ByParameter(KeyedDPOptimizer):
        def _divisors(self, gradients: list[Tensor]) -> Tensor:
            return super()._divisors(gradients[:1])

    monkeypatch.setitem(globals(), "KeyedDPOptimizer", ByParameter)
    with pytest.raises(AssertionError):
        check_one_record_moves_the_sum_by_at_most_the_clip()


def test_no_clip_at_all_is_caught(monkeypatch: Patch) -> None:
    class Unclipped(KeyedDPOptimizer):
        def _divisors(self, gradients: list[Tensor]) -> Tensor:
            return torch.full((len(gradients[0]), 1), self._grid)

    monkeypatch.setitem(globals(), "KeyedDPOptimizer", Unclipped)
    with pytest.raises(AssertionError):
        check_one_record_moves_the_sum_by_at_most_the_clip()


def check_noise_is_whole_and_keyed() -> None:
    settings = study(sample_rate=1e-6, noise_multiplier=1.3, max_grad_norm=0.5, student="fp32-cnn")
    quiet = dataclasses.replace(work(settings), learning_rate=1e-6)
    noise = change(quiet).double()
    assert float(noise.std()) == pytest.approx(1e-6 * 1.3 * 0.5 / (1e-6 * DECLARED), rel=0.02)
    assert torch.equal(change(quiet).double(), noise)
    other = train(quiet, records(), KeyedGenerator.from_seed(12, "round"))[0].double()
    assert abs(float(torch.corrcoef(torch.stack([noise, other]))[0, 1])) < 0.03


def test_noise_is_whole_and_keyed() -> None:
    check_noise_is_whole_and_keyed()


def test_half_the_noise_is_caught(monkeypatch: Patch) -> None:
    honest = KeyedGenerator.normal
    monkeypatch.setattr(KeyedGenerator, "normal", lambda self, count: honest(self, count) / 2)
    with pytest.raises(AssertionError):
        check_noise_is_whole_and_keyed()


def test_noise_from_torchs_own_generator_is_caught(monkeypatch: Patch) -> None:
    monkeypatch.setattr(KeyedGenerator, "normal", lambda self, count: torch.randn(count).double().numpy())
    with pytest.raises(AssertionError):
        check_noise_is_whole_and_keyed()


def test_noise_from_one_fixed_key_is_caught(monkeypatch: Patch) -> None:
    honest = KeyedGenerator.normal
    monkeypatch.setattr(
        KeyedGenerator, "normal", lambda self, count: honest(KeyedGenerator(bytes(32)), count)
    )
    with pytest.raises(AssertionError):
        check_noise_is_whole_and_keyed()


# Observers: no layer carries a record's values to another record or to the released model.


def check_records_stay_apart(model: nn.Module) -> None:
    """No buffer; a record's logits are those it has alone, also after the model saw others."""
    generator = torch.Generator().manual_seed(0)
    mine, others = (torch.rand(count, 1, SIDE, SIDE, generator=generator) for count in (1, 4))
    model.train()
    assert list(model.buffers()) == []
    assert {type(layer).__name__ for layer in model.modules()}.isdisjoint({"BatchNorm2d", "FakeQuantize"})
    alone = model(mine)
    together = model(torch.cat([mine, 5 * others]))[:1]
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.equal(model(mine), alone)


class LearnedRange(nn.Module):
    """Clamps by the largest value of the batch: no buffer, no parameter, and yet records meet."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=float(x.detach().max()) / 2)


class Remembering(nn.Module):
    """Keeps the largest value in an attribute that is no buffer."""

    largest = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, float(x.detach().abs().max()))
        return x.clamp(-self.largest / 2, self.largest / 2)


def leaking(layer: nn.Module) -> nn.Sequential:
    model = build_student(StudentSpec("fp32-cnn", 1, SIDE, SIDE, 2))
    initialise(model, KeyedGenerator.from_seed(0))
    return nn.Sequential(model[0], layer, *list(model)[1:])


@pytest.mark.parametrize("name", SMALLEST)
def test_records_stay_apart_in_every_student(name: str) -> None:
    model = build_student(StudentSpec(name, 1, SIDE, SIDE, 2))
    initialise(model, KeyedGenerator.from_seed(0))
    check_records_stay_apart(model)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(32),
        nn.BatchNorm2d(32, affine=False),
        nn.BatchNorm2d(32, affine=False, track_running_stats=False),
        torch.ao.quantization.FakeQuantize(),  # type: ignore[no-untyped-call]
        LearnedRange(),
        Remembering(),
    ],
    ids=["norm", "norm without weights", "norm without statistics", "observer", "range", "memory"],
)
def test_a_layer_that_lets_records_meet_is_caught(layer: nn.Module) -> None:
    with pytest.raises(AssertionError):
        check_records_stay_apart(leaking(layer))


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(32),
        nn.BatchNorm2d(32, affine=False),
        nn.BatchNorm2d(32, affine=False, track_running_stats=False),
        torch.ao.quantization.FakeQuantize(),  # type: ignore[no-untyped-call]
        torch.ao.quantization.MinMaxObserver(),
    ],
)
def test_the_real_training_step_refuses_an_observer_by_itself(layer: nn.Module, monkeypatch: Patch) -> None:
    with pytest.raises(SettingRefused):
        PerSampleGradients(leaking(layer))
    monkeypatch.setattr(training, "build_student", lambda spec: leaking(layer))
    plain = work(study(student="fp32-cnn"))
    count = sum(parameter.numel() for parameter in leaking(layer).parameters())
    with pytest.raises(SettingRefused):
        train(dataclasses.replace(plain, latents=torch.zeros(count)), records(), key())


def test_a_round_leaves_nothing_of_the_records_in_the_student(monkeypatch: Patch) -> None:
    built: list[nn.Sequential] = []

    def keep(spec: StudentSpec) -> nn.Sequential:
        built.append(models.build_student(spec))
        return built[-1]

    monkeypatch.setattr(training, "build_student", keep)
    change(work())
    assert built
    for model in built:
        assert list(model.buffers()) == []
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
