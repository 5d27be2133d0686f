"""What a study asks of each hospital once, after its last round, on the released latents: public facts.

Both parts are off by default. Each is one Gaussian mechanism over all records (sampling rate 1), charged
under its own kind: `METRIC`, counts from which accuracy and AUC on the hospitals' own records follow
(`fedward.common.metric_cells`), and `FISHER`, squared gradients by output channel, for EWC in a later study.
"""

import math

import numpy as np
import numpy.typing as npt

from fedward.common.config import LocalSettings
from fedward.common.mechanisms import Mechanism
from fedward.common.metric_cells import MetricCells
from fedward.common.models import StudentSpec, build_student

METRIC, FISHER = "metric", "fisher"
FISHER_GRID = 2.0**-20  # of C^2: in these steps the Fisher is summed and noised


def measurements(settings: LocalSettings) -> dict[str, Mechanism]:
    """What a study's measurement spends, by kind; empty where it asks for none."""
    asked = {METRIC: settings.metric_noise_multiplier, FISHER: settings.fisher_noise_multiplier}
    return {kind: Mechanism(sigma, 1.0, 1) for kind, sigma in asked.items() if sigma > 0.0}


def measurement_round(settings: LocalSettings) -> int:
    """The number that a measurement has among the study's rounds: it comes behind the last."""
    return settings.rounds + 1


def cells_of(settings: LocalSettings) -> MetricCells:
    """The public cells that the study's records are counted in."""
    return MetricCells(settings.task, len(settings.classes))


def channel_ranges(spec: StudentSpec) -> list[range]:
    """Which output channels each of the student's parameters belongs to, in their order.

    A channel is all that makes one output of a layer: a row of its weight, and the bias, the positions, or
    the normalisation's scale and shift, that follow it. So every weight belongs to exactly one channel, and a
    parameter holds equally many weights of each of its channels, one channel after another.
    """
    ranges: list[range] = []
    for parameter in build_student(spec).parameters():
        last = ranges[-1] if ranges else range(0)
        follows = parameter.dim() == 1 and len(last) > 0 and len(parameter) % len(last) == 0
        ranges.append(last if follows else range(last.stop, last.stop + len(parameter)))
    return ranges


def channel_of_weights(spec: StudentSpec) -> npt.NDArray[np.int64]:
    """The channel of each weight of the flattened student, int64 (n,)."""
    parameters = build_student(spec).parameters()
    return np.concatenate(
        [
            np.repeat(np.array(channels), parameter.numel() // len(channels))
            for parameter, channels in zip(parameters, channel_ranges(spec), strict=True)
        ]
    )


def measured_sizes(settings: LocalSettings) -> dict[str, int]:
    """How many whole numbers each part of the measurement has."""
    sizes = {METRIC: cells_of(settings).count, FISHER: channel_ranges(settings.spec)[-1].stop}
    return {kind: sizes[kind] for kind in measurements(settings)}


def sensitivities(settings: LocalSettings) -> dict[str, float]:
    """How far one record moves each exact sum at most, in L2 and in the sum's whole numbers."""
    bounds = {METRIC: math.sqrt(cells_of(settings).a_record), FISHER: 1.0 / FISHER_GRID}
    return {kind: bounds[kind] for kind in measurements(settings)}


def noise_deviations(settings: LocalSettings) -> dict[str, float]:
    """The noise's standard deviation in each number of each part."""
    asked, bounds = measurements(settings), sensitivities(settings)
    return {kind: asked[kind].noise_multiplier * bounds[kind] for kind in asked}
