"""Faults of the measurement, planted as in `fedward.simulations.audit_faults`."""

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from torch import Tensor, nn

from fedward.client import measuring
from fedward.client.budget import Budget
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.measurement import FISHER, FISHER_GRID, METRIC, measurements
from fedward.common.metric_cells import Ints


def fisher_without_clip() -> AbstractContextManager[object]:
    """Gradients are squared as they are."""

    def unclipped(gradients: list[Tensor], clip: float) -> list[Tensor]:
        return [gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in gradients]

    return mock.patch.object(measuring, "_clipped", unclipped)


def weighted_counts() -> AbstractContextManager[object]:
    """Each class weighs the same in the counts, so that a record of a rare class weighs more than 1."""
    counts = measuring._counts

    def balanced(settings: LocalSettings, model: nn.Module, records: Split) -> Ints:
        total = counts(settings, model, records)
        for label in range(len(settings.classes)):
            mine = records.labels == label
            of_class = Split(records.images[mine], records.labels[mine])
            times = len(mine) // max(1, int(mine.sum())) - 1
            total += max(0, times) * counts(settings, model, of_class)
        return total

    return mock.patch.object(measuring, "_counts", balanced)


def noise_for_one_cell() -> AbstractContextManager[object]:
    """The counts' noise is made for a record that touches one cell, where it touches several."""
    return _deviations({METRIC: 1.0, FISHER: 1.0 / FISHER_GRID})


def noise_by_the_clip() -> AbstractContextManager[object]:
    """The Fisher's noise is a multiple of the clip, not of its square."""
    return _deviations({METRIC: 2.0**0.5, FISHER: 0.5 / FISHER_GRID})


def _deviations(bounds: dict[str, float]) -> AbstractContextManager[object]:
    def wrong(settings: LocalSettings) -> dict[str, float]:
        return {kind: asked.noise_multiplier * bounds[kind] for kind, asked in measurements(settings).items()}

    return mock.patch.object(measuring, "noise_deviations", wrong)


def not_charged() -> AbstractContextManager[object]:
    """The ledger is told of the steps, and nothing of the measurement."""
    charge = Budget.charge

    def steps_only(self: Budget, *given: Any, **more: Any) -> Any:
        return None if more.get("kind") in (METRIC, FISHER) else charge(self, *given, **more)

    return mock.patch.object(Budget, "charge", steps_only)
