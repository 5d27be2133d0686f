"""A unit's gradient is the same bits in any company: else one unit's coming could flip another's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedward.client import training
from fedward.client.dp_sgd import KeyedDPOptimizer
from fedward.client.training import LocalRound, UnitGradients
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.models import SMALLEST, TRAINED, build_student, flatten, initialise
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator


def gradients_of(settings: LocalSettings, records: Split, units: list[int]) -> torch.Tensor:
    """The gradients of `units`, float32 (len(units), parameters), as the training step computes them."""
    model = build_student(settings.spec)
    initialise(model, KeyedGenerator.from_seed(3))
    latents = [parameter.detach().clone() for parameter in model.parameters()]
    load_latents(model, latents, settings.spec.precision)
    work = LocalRound(settings, 0.5, len(records.images), flatten(latents))
    source = UnitGradients(model, work, records, KeyedGenerator.from_seed(4))
    parts = list(source._parts(np.array(units, np.int64), KeyedGenerator.from_seed(5)))
    return torch.cat([torch.cat([part.flatten(1) for part in some], dim=1) for some in parts])[: len(units)]


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("student", SMALLEST)
def test_a_units_gradient_does_not_depend_on_who_else_was_drawn(
    student: str, views: int, trained: str, make_local: Callable[..., LocalSettings]
) -> None:
    torch.set_num_threads(1)
    changes = {"student": student, "views": views, "trained": trained, "augmentation": "none"}
    settings = make_local(height=28, width=28, **changes)
    rng = np.random.default_rng(0)
    records = Split(rng.integers(0, 256, (40, 28, 28, 1), np.uint8), np.arange(40) % 2)
    size = training.PHYSICAL_ROWS // views
    alone = gradients_of(settings, records, [7])[0]
    for company in ([7, 8], [8, 7], [1, 2, 3, 7, 9], list(range(min(size, 40)))):
        together = gradients_of(settings, records, company)
        assert torch.equal(together[company.index(7)], alone), company


def test_without_the_public_shape_it_would(
    monkeypatch: pytest.MonkeyPatch, make_local: Callable[..., LocalSettings]
) -> None:
    """The check above can fail: batches of as many rows as were drawn round otherwise."""
    torch.set_num_threads(1)
    monkeypatch.setattr(training, "filled", lambda rows, size: rows)
    settings = make_local(student="fp32-cnn", height=28, width=28, augmentation="none")
    rng = np.random.default_rng(0)
    records = Split(rng.integers(0, 256, (40, 28, 28, 1), np.uint8), np.arange(40) % 2)
    alone = gradients_of(settings, records, [7])[0]
    companies = [[7, *range(8, 8 + more)] for more in (1, 2, 3, 7, 15, 30)]
    assert any(not torch.equal(gradients_of(settings, records, units)[0], alone) for units in companies)


def clipped_sum(settings: LocalSettings, records: Split) -> torch.Tensor:
    """What a round's one step would noise, float64 (parameters,)."""
    held: list[torch.Tensor] = []

    class Watching(KeyedDPOptimizer):
        def add_noise(self) -> None:
            held.append(torch.cat([parameter.summed_grad.flatten() for parameter in self.params]))
            super().add_noise()

    model = build_student(settings.spec)
    initialise(model, KeyedGenerator.from_seed(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "KeyedDPOptimizer", Watching)
        work = LocalRound(settings, 0.5, 100, flatten(list(model.parameters())))
        training.train(work, records, KeyedGenerator.from_seed(4))
    return held[0]


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("student", SMALLEST)
def test_what_a_unit_adds_to_the_released_sum_is_the_same_bits_in_any_company(
    student: str, views: int, make_local: Callable[..., LocalSettings]
) -> None:
    settings = make_local(
        student=student, height=28, width=28, views=views, augmentation="none", sample_rate=1.0
    )
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (71, 28, 28, 1), np.uint8), np.arange(71) % 2
    whole = clipped_sum(settings, Split(images, labels))
    for cut in (1, 40, 70):
        parts = [Split(images[rows], labels[rows]) for rows in (slice(0, cut), slice(cut, 71))]
        assert torch.equal(whole, clipped_sum(settings, parts[0]) + clipped_sum(settings, parts[1]))


def _tied(settings: LocalSettings, image: np.ndarray, seed: int) -> torch.Tensor:
    """A hostile model: a head of weights 1e9 whose bias balances a known image to the last bit."""
    model = build_student(settings.spec)
    initialise(model, KeyedGenerator.from_seed(seed))
    head = model[-1]
    with torch.no_grad():
        head.weight.mul_(1e9)
        inputs = torch.from_numpy(image[None].transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1.0
        outputs = [model(inputs)[0], model(inputs.repeat(2, 1, 1, 1))[0]]
        head.bias.copy_(-(outputs[0] + outputs[1]) / 2)
    return flatten(list(model.parameters()))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_a_model_balanced_on_a_known_image_learns_no_more_than_the_clip(
    seed: int, label: int, make_local: Callable[..., LocalSettings]
) -> None:
    settings = make_local(
        student="fp32-cnn", height=28, width=28, sample_rate=1.0, noise_multiplier=0.0, augmentation="none"
    )
    image = np.random.default_rng(seed).integers(0, 256, (28, 28, 1), np.uint8)
    latents = _tied(settings, image, seed)
    sums = []
    for count in (1, 2):
        records = Split(np.stack([image] * count), np.full(count, label))
        work = LocalRound(settings, 1e3, 10, latents)
        change, _ = training.train(work, records, KeyedGenerator.from_seed(1))
        sums.append(change.double() * 10 / 1e3)
    assert float((sums[1] - sums[0]).norm()) <= 1.001 * settings.max_grad_norm
