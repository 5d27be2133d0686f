"""What a hospital's privacy budgets look like to a person: as JSON, as tables, and over time."""

import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Column, Table

from fedward.client.budget import Budget
from fedward.client.spending import Charge, mechanisms_of, steps_of
from fedward.common.errors import OutputRefused
from fedward.common.files import refused_output
from fedward.common.printing import printable, unmistakable
from fedward.common.privacy import Mechanism, epsilon

# Each point of the plot asks the accountant once.
_MOST_POINTS = 60
_COLUMNS = ("kind", "rounds", "steps", "noise", "rate", "epsilon alone", "rounds affordable")


@dataclass(frozen=True)
class Usage:
    """What one study spent by one mechanism.

    Attributes:
        study: its name.
        kind: of the charges.
        rounds: how many were charged.
        mechanism: all of them together.
        epsilon: of these alone; rows do not add up, they compose.
        affordable: how many more of its latest round fit.
    """

    study: str
    kind: str
    rounds: int
    mechanism: Mechanism
    epsilon: float
    affordable: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "study": self.study,
            "kind": self.kind,
            "rounds": self.rounds,
            **vars(self.mechanism),
            "epsilon": _finite(self.epsilon),
            "rounds_affordable": self.affordable,
        }


def summary(budget: Budget) -> dict[str, Any]:
    """One data set's budget as a JSON object; an infinite epsilon is null."""
    terms, state, head = budget.terms, budget.state, budget.ledger.head
    return {
        "names": state.names,
        "unit": terms.unit,
        "images": state.image_count,
        "total_epsilon": terms.total_epsilon,
        "delta": terms.delta,
        "spent": _finite(budget.spent()),
        "planned": _finite(budget.planned()),
        "left": budget.left(),
        "suspended": bool(state.suspended),
        "head": {"seq": head.seq, "hash": head.hash},
        "reserved": [
            {"study": study, **vars(mechanism)}
            for study, steps in state.reserved.items()
            for mechanism in mechanisms_of(steps)
        ],
        "recovered": [vars(mechanism) for _, lost in state.recovered for mechanism in lost],
        "usage": [usage.to_json() for usage in usages(budget)],
    }


def usages(budget: Budget) -> list[Usage]:
    """By study, kind and mechanism, in the order of their first charge."""
    grouped: dict[tuple[str, str, float, float], list[Charge]] = {}
    for charge in budget.state.charges.values():
        mechanism = charge.mechanism
        key = (charge.study, charge.kind, mechanism.noise_multiplier, mechanism.sample_rate)
        grouped.setdefault(key, []).append(charge)
    return [_usage(budget, charges) for charges in grouped.values()]


def heading(found: dict[str, Any]) -> str:
    """One line over the tables: which data set, by which unit, at which delta."""
    names = _text(", ".join(found["names"]))
    return f"{names}: {found['images']} images, epsilon by {_text(found['unit'])} at delta {found['delta']:g}"


def tables(found: dict[str, Any]) -> list[Table]:
    """The tables of one `summary`."""
    total = Table("total", "spent", "planned", "left")
    total.add_row(*(_figure(found[key]) for key in ("total_epsilon", "spent", "planned", "left")))
    rows = _by_study(*_COLUMNS)
    for usage in found["usage"]:
        rows.add_row(
            escape(unmistakable(usage["study"])), usage["kind"], str(usage["rounds"]), str(usage["steps"]),
            f"{usage['noise_multiplier']:g}", f"{usage['sample_rate']:g}", _figure(usage["epsilon"]),
            str(usage["rounds_affordable"]),
        )  # fmt: skip
    return [total, rows, *_reserved(found["reserved"])]


def _reserved(plans: list[dict[str, Any]]) -> list[Table]:
    if not plans:
        return []
    table = _by_study("steps reserved", "noise", "rate")
    for plan in plans:
        table.add_row(
            escape(unmistakable(plan["study"])), str(plan["steps"]), f"{plan['noise_multiplier']:g}",
            f"{plan['sample_rate']:g}",
        )  # fmt: skip
    return [table]


def _by_study(*columns: str) -> Table:
    """A table that cuts nothing: half a name could be another study's, half a figure another figure."""
    study = Column("study", overflow="fold", ratio=1)
    return Table(study, *(Column(name, overflow="fold") for name in columns))


def released(budget: Budget, study: str) -> dict[str, Any]:
    """Give up what is reserved for `study`, and tell what came free as a JSON object."""
    before = budget.planned()
    freed = budget.release(study)
    return {
        "names": budget.state.names,
        "freed": [vars(mechanism) for mechanism in freed],
        "planned_before": _finite(before),
        "planned": _finite(budget.planned()),
        "spent": _finite(budget.spent()),
        "total_epsilon": budget.terms.total_epsilon,
    }


def released_said(found: dict[str, Any]) -> str:
    """One `released` in words."""
    steps = "; ".join(
        f"{freed['steps']} steps at noise multiplier {freed['noise_multiplier']:g} and sample rate "
        f"{freed['sample_rate']:g}"
        for freed in found["freed"]
    )
    return (
        f"{_text(', '.join(found['names']))}: {steps or 'nothing'} came free. Of epsilon "
        f"{found['total_epsilon']:g}, {_figure(found['planned'])} is spent or reserved now, where "
        f"{_figure(found['planned_before'])} was; {_figure(found['spent'])} is spent and stays so."
    )


def timeline(budget: Budget) -> list[tuple[datetime, float]]:
    """Epsilon after each charge of this data set's own ledger, at most 60 points.

    Where the clock was set back, a charge is shown at the time of the one before it.
    """
    charges = sorted(budget.state.charges.values(), key=lambda charge: charge.head.seq)
    stride = math.ceil(len(charges) / _MOST_POINTS) or 1
    shown = {*range(0, len(charges), stride), len(charges) - 1}
    spent: Counter[tuple[float, float]] = Counter()
    points, latest = [], ""
    for index, charge in enumerate(charges):
        spent += steps_of([charge.mechanism])
        latest = max(latest, charge.time)
        if index in shown:
            figure = epsilon(mechanisms_of(spent), budget.terms.delta)
            points.append((datetime.fromisoformat(latest), figure))
    return points


def plot(budgets: list[Budget], path: Path) -> None:
    """Draw epsilon over time against each total, as PNG.

    Raises:
        OutputRefused: matplotlib is not installed, or the file cannot be written.
    """
    try:
        # Only this option needs it, and a hospital's installation does not bring it.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise OutputRefused("--plot needs matplotlib: run `pip install matplotlib`.") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for budget in budgets:
        name = ", ".join(budget.state.names)
        (line,) = axes.step(*_columns(timeline(budget)), where="post", marker="o", markersize=3, label=name)
        axes.axhline(budget.terms.total_epsilon, linestyle="--", linewidth=1, color=line.get_color())
    axes.set(
        xlabel="time (UTC)", ylabel="epsilon spent", title="Privacy budget: spent (solid), total (dashed)"
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise refused_output(path, error) from error


def _usage(budget: Budget, charges: list[Charge]) -> Usage:
    first, last = charges[0], charges[-1]
    together = Mechanism(
        first.mechanism.noise_multiplier,
        first.mechanism.sample_rate,
        sum(charge.mechanism.steps for charge in charges),
    )
    return Usage(
        study=first.study,
        kind=first.kind,
        rounds=len(charges),
        mechanism=together,
        epsilon=epsilon([together], budget.terms.delta),
        affordable=budget.rounds_affordable(last.mechanism) if last.mechanism.steps else 0,
    )


def _columns(points: list[tuple[datetime, float]]) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    times = [time.replace(tzinfo=None) for time, _ in points]
    return np.array(times, dtype="datetime64[ms]"), np.array([figure for _, figure in points])


def _text(name: str) -> str:
    """A name from elsewhere that can steer neither the terminal nor the table's markup."""
    return escape(printable(name))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _figure(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.3f}"
