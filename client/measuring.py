"""The measurement behind a study's last round: noised counts, and a noised Fisher by output channel.

Formal guarantees. Both are Gaussian mechanisms on a sum of one vector a record, of whole numbers, so that
sums are exact and neither order nor company changes a bit; noise is rounded to the same whole numbers, which
is post-processing (`fedward.client.dp_sgd` says why that has to be said).

- Counts: a record adds 1 in exactly m public cells, whatever it is and whatever model was sent, so one
  record moves the vector by sqrt(m) in L2. Noise: N(0, (sigma*sqrt(m))^2) a cell.
- Fisher: a record's gradient g of the log-likelihood is clipped to ||g|| <= C' < C, and s, its squares summed
  over each output channel, has ||s||_2 <= ||s||_1 = ||g||^2 <= C^2, for no entry of s is negative and every
  weight belongs to one channel. It is
  rounded down to a grid of 2^-20 * C^2, which only shortens it. So one record moves the sum by C^2 in L2.
  Noise: N(0, (sigma*C^2)^2) a channel. A gradient that is not finite counts as zero. `clip_below` leaves room
  for the rounding of float64 squares and sums, which is far below its allowance.

Divided by their sensitivities both are one Gaussian mechanism of sensitivity 1 and noise multiplier sigma,
over all records: `fedward.common.measurement.measurements` is what is charged. Every pass has one public
shape, as in training, and so has all that is computed of its rows until they are whole numbers: a record's
part is the same bits in any company (`fedward.client.training`).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedward.client.dp_sgd import clip_below
from fedward.client.training import PHYSICAL_ROWS, filled
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.images import to_tensor
from fedward.common.losses import classification
from fedward.common.measurement import (
    FISHER,
    FISHER_GRID,
    METRIC,
    cells_of,
    channel_ranges,
    measured_sizes,
    measurements,
    noise_deviations,
)
from fedward.common.models import build_student, parameter_count, unflatten
from fedward.common.per_sample import PerSampleGradients
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator

Ints = npt.NDArray[np.int64]


def measure(
    settings: LocalSettings, latents: Tensor, records: Split, num_examples: int, generator: KeyedGenerator
) -> dict[str, Ints]:
    """What the settings ask for, noised: kind -> int64 (cells or channels,).

    Args:
        latents: the released model, float32 (n,); what is measured is its quantised student.
        num_examples: the declared count; records beyond it take no part.
        generator: of the measurement's own key.
    """
    torch.set_num_threads(1)  # as in training
    part = Split(records.images[:num_examples], records.labels[:num_examples])
    sums = exact_sums(settings, latents, part)
    deviations = noise_deviations(settings)
    return {
        kind: sums[kind] + _noise(generator.derive("measure", kind), deviations[kind], len(sums[kind]))
        for kind in measurements(settings)
    }


def exact_sums(settings: LocalSettings, latents: Tensor, records: Split) -> dict[str, Ints]:
    """The sums before the noise, private; the Fisher in steps of `FISHER_GRID` * C^2."""
    model = build_student(settings.spec)
    load_latents(model, unflatten(latents, list(model.parameters())), settings.spec.precision)
    of = {METRIC: _counts, FISHER: _squares}
    return {kind: of[kind](settings, model, records) for kind in measurements(settings)}


def _noise(generator: KeyedGenerator, deviation: float, count: int) -> Ints:
    return np.rint(generator.normal(count) * deviation).astype(np.int64)


def _batches(records: Split) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Images and labels in the one public shape, and how many of them are records."""
    for start in range(0, len(records.images), PHYSICAL_ROWS):
        rows = slice(start, start + PHYSICAL_ROWS)
        images = filled(to_tensor(records.images[rows]), PHYSICAL_ROWS)
        labels = torch.from_numpy(records.labels[rows])
        yield images, filled(labels, PHYSICAL_ROWS), len(labels)


@torch.no_grad()
def _counts(settings: LocalSettings, model: nn.Module, records: Split) -> Ints:
    cells = cells_of(settings)
    total = np.zeros(cells.count, np.int64)
    for images, labels, count in _batches(records):
        total += cells.counts(cells.places(model(images).numpy(), labels.numpy())[:count])
    return total


def _squares(settings: LocalSettings, model: nn.Module, records: Split) -> Ints:
    engine, channels = PerSampleGradients(model), channel_ranges(settings.spec)
    total = np.zeros(measured_sizes(settings)[FISHER], np.int64)
    clip = clip_below(1.0, 1, parameter_count(model))
    for images, labels, count in _batches(records):
        gradients = engine.compute(images, lambda x, y=labels: classification(x, y, settings.task))  # type: ignore[misc]
        scaled = [gradient.double() / settings.max_grad_norm for gradient in gradients]
        total += _steps(_clipped(scaled, clip), channels)[:count].sum(dim=0).numpy()
    return total


def _clipped(gradients: list[Tensor], clip: float) -> list[Tensor]:
    """Each unit's gradient, (units, channels, ...), cut to `clip`; zero where it is not finite. float64."""
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
    norms = torch.linalg.vector_norm(flat, dim=1)
    finite = norms.isfinite()
    factors = torch.where(finite, clip / norms.clamp(min=clip), 0.0)
    return [
        torch.where(finite.view(-1, *[1] * (gradient.dim() - 1)), gradient, 0.0)
        * factors.view(-1, *[1] * (gradient.dim() - 1))
        for gradient in gradients
    ]


def _steps(gradients: list[Tensor], channels: list[range]) -> Tensor:
    """Squares summed over each output channel, in whole steps of the grid, int64 (units, channels)."""
    sums = torch.zeros(len(gradients[0]), channels[-1].stop, dtype=torch.float64)
    for gradient, own in zip(gradients, channels, strict=True):
        squares = gradient.square()
        sums[:, own.start : own.stop] += squares if squares.dim() == 2 else squares.flatten(2).sum(dim=2)
    return torch.floor(sums / FISHER_GRID).to(torch.int64)
