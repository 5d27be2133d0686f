"""What a study asks of each hospital once, after its last round, on the released latents: public facts.

Both parts are off by default. Each is one Gaussian mechanism over all records (sampling rate 1), charged
under its own kind: `METRIC`, counts from which accuracy and AUC on the hospitals' own records follow
(`fedward.common.metric_cells`), and `FISHER`, squared gradients by output channel, for EWC in a later study.
"""

import math

from torch import nn

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


def channel_sizes(spec: StudentSpec) -> list[int]:
    """How many weights each output channel has, in the order of the student's parameters.

    An output channel is what one index of a parameter's first axis selects; a bias or a scale has one weight
    a channel.
    """
    return [size for parameter in _parameters(spec) for size in [parameter[0].numel()] * len(parameter)]


def measured_sizes(settings: LocalSettings) -> dict[str, int]:
    """How many whole numbers each part of the measurement has."""
    sizes = {METRIC: cells_of(settings).count, FISHER: len(channel_sizes(settings.spec))}
    return {kind: sizes[kind] for kind in measurements(settings)}


def sensitivities(settings: LocalSettings) -> dict[str, float]:
    """How far one record moves each exact sum at most, in L2 and in the sum's whole numbers."""
    bounds = {METRIC: math.sqrt(cells_of(settings).a_record), FISHER: 1.0 / FISHER_GRID}
    return {kind: bounds[kind] for kind in measurements(settings)}


def noise_deviations(settings: LocalSettings) -> dict[str, float]:
    """The noise's standard deviation in each number of each part."""
    asked, bounds = measurements(settings), sensitivities(settings)
    return {kind: asked[kind].noise_multiplier * bounds[kind] for kind in asked}


def _parameters(spec: StudentSpec) -> list[nn.Parameter]:
    return list(build_student(spec).parameters())
