"""Accuracy and AUC of the released model on the hospitals' own records, from their noised counts.

Post-processing of what left under differential privacy, so free. The counts are of training records: the
figures flatter the model where it has learned them by heart, which noise keeps small but does not exclude.

Counts are used as they came, also negative ones: to cut each at zero would keep the noise's positive half
alone, and pull every figure towards chance. Only the figures are cut, to 0 and 1. A class whose count drowns
in the noise has no figure. Standard errors are rough, of first order: the noise's and the sampling's part.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedward.common.config import LocalSettings
from fedward.common.measurement import METRIC, cells_of, noise_deviations
from fedward.common.metrics import hanley_mcneil_standard_error

_DROWNED = 3.0  # a count of fewer noise deviations tells nothing
Ints = npt.NDArray[np.int64]
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Figure:
    """A value in [0, 1] and its variance."""

    value: float
    variance: float


def private_figures(settings: LocalSettings, counts: Ints, hospitals: int) -> dict[str, Figures]:
    """The three figures of every table, and a standard error of each; None where the noise hides it.

    Args:
        counts: of all hospitals together, int64 (cells,).
        hospitals: how many they come from, each with noise of its own.

    Returns:
        ``{"figures": {auc, accuracy, balanced_accuracy}, "standard_errors": {the same}}``.
    """
    tables, histograms = cells_of(settings).split(counts)
    noise = noise_deviations(settings)[METRIC] * math.sqrt(hospitals)
    found = {
        "auc": _macro([_auc(of_class.astype(np.float64), noise) for of_class in histograms]),
        "accuracy": _accuracy(tables, noise),
        "balanced_accuracy": _macro([_balanced(table, noise) for table in tables]),
    }
    return {
        "figures": {name: None if f is None else f.value for name, f in found.items()},
        "standard_errors": {name: None if f is None else math.sqrt(f.variance) for name, f in found.items()},
    }


def _share(part: float, part_cells: int, whole: float, whole_cells: int, noise: float) -> Figure | None:
    """part / whole, where the cells of the part are among those of the whole."""
    if whole <= _DROWNED * noise * math.sqrt(whole_cells):
        return None
    value = min(1.0, max(0.0, part / whole))
    of_noise = (part_cells * (1 - 2 * value) + whole_cells * value**2) * (noise / whole) ** 2
    return Figure(value, max(0.0, of_noise) + value * (1 - value) / whole)


def _accuracy(tables: Ints, noise: float) -> Figure | None:
    right = int(np.trace(tables, axis1=1, axis2=2).sum())
    return _share(right, tables.shape[0] * tables.shape[1], int(tables.sum()), tables.size, noise)


def _balanced(table: Ints, noise: float) -> Figure | None:
    """Mean recall of the classes that the noise does not hide."""
    recalls = [_share(int(row[k]), 1, int(row.sum()), len(row), noise) for k, row in enumerate(table)]
    known = [recall for recall in recalls if recall is not None]
    if not known:
        return None
    # Different rows have different records and different noise.
    variance = sum(recall.variance for recall in known) / len(known) ** 2
    return Figure(float(np.mean([recall.value for recall in known])), variance)


def _auc(histogram: npt.NDArray[np.float64], noise: float) -> Figure | None:
    """Area under the trapezoids through the bins' edges: a pair within one bin counts half."""
    negatives, positives = histogram
    total_negative, total_positive = float(negatives.sum()), float(positives.sum())
    if min(total_negative, total_positive) <= max(0.5, _DROWNED * noise * math.sqrt(len(negatives))):
        return None
    below = (np.cumsum(negatives) - negatives / 2) / total_negative
    above = (total_positive - np.cumsum(positives) + positives / 2) / total_positive
    value = min(1.0, max(0.0, float(positives @ below) / total_positive))
    # How the area moves with each count, to first order.
    slopes = np.concatenate([(below - value) / total_positive, (above - value) / total_negative])
    sampling = hanley_mcneil_standard_error(value, round(total_positive), round(total_negative))
    return Figure(value, float(slopes @ slopes) * noise**2 + sampling**2)


def _macro(figures: list[Figure | None]) -> Figure | None:
    """The mean of those that are known; its standard error is at most the mean of theirs."""
    known = [figure for figure in figures if figure is not None]
    if not known:
        return None
    error = float(np.mean([math.sqrt(figure.variance) for figure in known]))
    return Figure(float(np.mean([figure.value for figure in known])), error**2)
