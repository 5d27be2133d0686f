"""The measurement behind a study's last round: noised counts, and a noised Fisher by output channel.

Formal guarantees. Both are Gaussian mechanisms on a sum of one vector a record, of whole numbers, so that
sums are exact and neither order nor company changes a bit; noise is rounded to the same whole numbers, which
is post-processing (`fedward.client.dp_sgd` says why that has to be said).

- Counts: a record adds 1 in exactly m public cells, whatever it is and whatever model was sent, so one
  record moves the vector by sqrt(m) in L2. Noise: N(0, (sigma*sqrt(m))^2) a cell.
- Fisher: a record's gradient g of the log-likelihood is clipped to ||g|| <= C' < C, and s, its squares summed
  over each output channel, has ||s||_2 <= ||s||_1 = ||g||^2 <= C^2, for no entry of s is negative and every
  weight belongs to one channel. It is cut down to whole steps of 2^-20 * C^2, which only shortens it, and
  summed as integers. So one record moves the sum by C^2 in L2, however many others there are. Noise:
  N(0, (sigma*C^2)^2) a channel. A gradient that is not finite counts as zero. Norm and clip are those of
  training, and so is their margin (`fedward.client.dp_sgd.clip_below`): the norm's rounding takes 2^9 u of it
  at most, and division, squares and sums, all in float64, at most (n + 4) 2^-53 for n weights, which is less
  than the rest, 4 u, for any model that fits in memory.

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

from fedward.client.dp_sgd import clip_below, clip_divisors
from fedward.client.training import PHYSICAL_ROWS, blanks_zeroed, filled
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
from fedward.common.models import build_student, unflatten
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
    load_latents(model, unflatten(latents, list(model.parameters())), settings.spec.precisions)
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
    clip, step = clip_below(settings.max_grad_norm), FISHER_GRID * settings.max_grad_norm**2
    for images, labels, count in _batches(records):
        parts = engine.in_parts(images, lambda x, y=labels: classification(x, y, settings.task))  # type: ignore[misc]
        for part in blanks_zeroed(parts, count):
            total += _steps(_clipped(part, clip), channels, step).sum(dim=0).numpy()
    return total


def _clipped(gradients: list[Tensor], clip: float) -> list[Tensor]:
    """Units' gradients cut to `clip`, or zero if not finite: (units, *shape) -> float64 (units, values)."""
    rows = [gradient.flatten(1) for gradient in gradients]
    divisors = clip_divisors(rows, clip)[:, None]
    return [row.double() / divisors for row in rows]


def _steps(gradients: list[Tensor], channels: list[range], step: float) -> Tensor:
    """Squares summed over each output channel, cut to whole steps of `step`, int64 (units, channels)."""
    sums = torch.zeros(len(gradients[0]), channels[-1].stop, dtype=torch.float64)
    for gradient, own in zip(gradients, channels, strict=True):
        by_channel = gradient.double().reshape(len(gradient), len(own), -1)
        sums[:, own.start : own.stop] += by_channel.square().sum(dim=2)
    return torch.floor(sums / step).to(torch.int64)
