"""The table of the study `medmnist`: means over seeds, averages over sets, beside published figures.

``OUT/medmnist.md`` is for a person, ``OUT/medmnist.json`` for a program; both hold the same.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedward.common.files import write_atomically
from fedward.common.medmnist_sets import MEDMNIST_SETS
from fedward.server.recipes import FROM_SCRATCH
from fedward.simulations.studies.published import BITMEDVIT, PUBLISHED, RESNET_18, Published
from fedward.simulations.studies.rows import Row, Target

FIGURES = (
    "accuracy_at_frequencies",
    "accuracy",
    "balanced_accuracy",
    "auc",
    "bytes",
    "latency_ms",
    "fp32_latency_ms",
)
AIMED_EPSILON, AIMED_BYTES = 3.0, 1_000_000
_HEADINGS = ("ACC", "ACC as released", "balanced ACC", "AUC", "bytes", "ms", "ms, fp32 twin")


@dataclass(frozen=True)
class Cell:
    """What a row measures, but for its set and seed."""

    mode: str
    student: str
    epsilon: float | None
    recipe: str

    @property
    def name(self) -> str:
        """For a person, without the epsilon."""
        return f"{self.mode}, {self.student}" + ("" if self.recipe == FROM_SCRATCH else f", {self.recipe}")


@dataclass(frozen=True)
class Measured:
    """A cell on one set: means over seeds, and their deviations where there are several.

    Attributes:
        fallback: what was trained in place of the cell's recipe, in any of the seeds, and why; or nothing.
    """

    set: str
    cell: Cell
    seeds: int
    largest_epsilon: float
    means: dict[str, float | None]
    deviations: dict[str, float]
    fallback: str


@dataclass(frozen=True)
class Average:
    """A cell over sets that it was measured on, beside what is published for the same sets; in `fell_back` of
    them something else was trained than the cell's recipe.
    """

    cell: Cell
    sets: tuple[str, ...]
    means: dict[str, float | None]
    published: dict[str, tuple[float | None, float | None]]
    fell_back: int


@dataclass(frozen=True)
class Table:
    """All that the study found.

    Attributes:
        measured: by set, then cell, in the order of the rows.
        averages: one a cell.
        refusals: (set, sentence), each once.
    """

    measured: tuple[Measured, ...]
    averages: tuple[Average, ...]
    refusals: tuple[tuple[str, str], ...]

    def to_dict(self) -> Row:
        """Plain JSON types, with the published figures of every set in it and their sources."""
        sets = {one.set for one in self.measured} | {name for name, _ in self.refusals}
        return asdict(self) | {
            "published": [
                {"name": one.name, "pixels": one.pixels, "source": one.source, "megabytes": one.megabytes}
                | {"accuracy": _only(one.accuracies, sets), "auc": _only(one.aucs, sets)}
                for one in PUBLISHED
            ]
        }


def _only(figures: dict[str, float], sets: set[str]) -> dict[str, float]:
    return {name: figure for name, figure in figures.items() if name in sets}


def summarise(rows: list[Row]) -> Table:
    """Group rows by set and cell."""
    groups: dict[tuple[str, Cell], list[Row]] = {}
    for row in rows:
        if "refusal" not in row:
            groups.setdefault((row["key"]["set"], _cell(row["key"])), []).append(row)
    found = tuple(_measured(name, cell, own) for (name, cell), own in groups.items())
    refusals = dict.fromkeys((row["key"]["set"], row["refusal"]) for row in rows if "refusal" in row)
    averages = _averages([one for one in found if one.set in MEDMNIST_SETS])
    return Table(found, averages, tuple(refusals))


def over_common_sets(table: Table) -> tuple[Average, ...]:
    """Averages that can be compared: over the sets, MedMNIST's or not, that every cell was measured on."""
    cells = {one.cell for one in table.measured}
    sets = dict.fromkeys(one.set for one in table.measured)
    common = [name for name in sets if cells == {one.cell for one in table.measured if one.set == name}]
    return _averages([one for one in table.measured if one.set in common])


def _cell(key: Row) -> Cell:
    return Cell(key["mode"], key["student"], key["epsilon"], key["recipe"])


def _measured(name: str, cell: Cell, rows: list[Row]) -> Measured:
    several = [
        figure for figure in FIGURES if len(rows) > 1 and _mean(row[figure] for row in rows) is not None
    ]
    return Measured(
        name,
        cell,
        len(rows),
        max(row["largest_epsilon"] for row in rows),
        {figure: _mean(row[figure] for row in rows) for figure in FIGURES},
        {figure: stdev(row[figure] for row in rows) for figure in several},
        next((_instead(row) for row in rows if row.get("recipe", cell.recipe) != cell.recipe), ""),
    )


def _instead(row: Row) -> str:
    return f"{row['student']} {row['recipe']}: {row['recipe_note']}"


def _mean(values: Iterable[float | None]) -> float | None:
    """None where one is missing, as an AUC is where a class is."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return mean(known) if known and len(known) == len(listed) else None


def _averages(found: Sequence[Measured]) -> tuple[Average, ...]:
    return tuple(_average(cell, found) for cell in dict.fromkeys(one.cell for one in found))


def _average(cell: Cell, found: Sequence[Measured]) -> Average:
    own = [one for one in found if one.cell == cell]
    sets = tuple(one.set for one in own)
    means = {figure: _mean(one.means[figure] for one in own) for figure in FIGURES}
    published = {one.name: one.mean_over(sets) for one in PUBLISHED}
    return Average(cell, sets, means, published, sum(bool(one.fallback) for one in own))


def targets(table: Table) -> list[Target]:
    """No hospital above its epsilon; and the aim: better than both at epsilon 3, in less than a megabyte."""
    found = [
        Target(f"{one.set}, {one.cell.name}: epsilon", one.largest_epsilon, one.cell.epsilon, False)
        for one in table.measured
        if one.cell.epsilon is not None
    ]
    for average in table.averages:
        cell = average.cell
        if (cell.mode, cell.epsilon) == ("federated", AIMED_EPSILON) and cell.student.startswith("ternary"):
            found += _aims(average)
    return found


def _aims(average: Average) -> list[Target]:
    ours, size = average.means["accuracy_at_frequencies"], average.means["bytes"]
    what = f"{average.cell.name}, epsilon {AIMED_EPSILON:g}, {len(average.sets)} sets"
    found = [] if size is None else [Target(f"{what}: bytes", size, AIMED_BYTES, False)]
    for rival in (RESNET_18, BITMEDVIT):
        theirs = average.published[rival.name][0]
        if ours is not None and theirs is not None:
            found.append(Target(f"{what}: accuracy beside {rival.name}", ours, theirs, True))
    return found


def write_table(out: Path, table: Table) -> tuple[Path, Path]:
    """Write both files, atomically, and return their paths.

    Raises:
        OutputRefused: they cannot be written.
    """
    text, data = out / "medmnist.md", out / "medmnist.json"
    write_atomically(text, markdown(table).encode())
    write_atomically(data, json.dumps(table.to_dict(), indent=1, ensure_ascii=False).encode() + b"\n")
    return text, data


def markdown(table: Table) -> str:
    """The tables, one a set, then the averages, what fell back, what was refused, and sources."""
    parts = [
        "# MedMNIST v2\n\nMeans over seeds on the test splits; deviations in brackets. docs/benchmark.md says"
    ]
    parts[0] += " what the columns are.\n"
    for name in dict.fromkeys(one.set for one in table.measured):
        own = [one for one in table.measured if one.set == name]
        parts.append(f"## {_plain(name)}\n\n{_set_table(name, own)}")
    if table.averages:
        parts.append(f"## Averages over the sets that were measured\n\n{_average_table(table.averages)}")
    if fallbacks := [one for one in table.measured if one.fallback]:
        lines = [[one.set, one.cell.name, _epsilon(one.cell.epsilon), one.fallback] for one in fallbacks]
        parts.append(f"## Fell back\n\n{_grid(['set', 'model', 'epsilon', 'trained instead'], lines)}")
    if table.refusals:
        lines = [[name, sentence] for name, sentence in table.refusals]
        parts.append(f"## Not measured\n\n{_grid(['set', 'why'], lines)}")
    numbered = [f"- {one.name}, {one.pixels} pixels: {one.source}." for one in PUBLISHED]
    parts.append("## Published figures\n\nNot private, not federated.\n\n" + "\n".join(numbered) + "\n")
    return "\n".join(parts)


def _set_table(name: str, own: list[Measured]) -> str:
    lines = [
        [
            one.cell.name + (" (fell back)" if one.fallback else ""),
            _epsilon(one.cell.epsilon),
            str(one.seeds),
            *_figures(one.means, one.deviations),
        ]
        for one in own
    ]
    lines += [_published_line(one, name) for one in PUBLISHED if name in one.accuracies]
    return _grid(["model", "epsilon", "seeds", *_HEADINGS], lines)


def _published_line(one: Published, name: str) -> list[str]:
    shown = [_share(one.accuracies[name]), "", "", _share(one.aucs.get(name)), "", "", ""]
    return [f"{one.name}, {one.pixels} pixels (published)", "none", "", *shown]


def _average_table(averages: Sequence[Average]) -> str:
    headings = ["model", "epsilon", "sets", *_HEADINGS[:5], *(f"{one.name} ACC / AUC" for one in PUBLISHED)]
    lines = [
        [
            one.cell.name + (f" (fell back on {one.fell_back})" if one.fell_back else ""),
            _epsilon(one.cell.epsilon),
            str(len(one.sets)),
            *_figures(one.means, {})[:5],
            *(" / ".join(map(_share, one.published[rival.name])) for rival in PUBLISHED),
        ]
        for one in averages
    ]
    return _grid(headings, lines)


def _figures(means: dict[str, float | None], deviations: dict[str, float]) -> list[str]:
    shown: dict[str, Callable[[Any], str]] = dict.fromkeys(FIGURES, _share)
    shown |= {"bytes": _whole, "latency_ms": _milliseconds, "fp32_latency_ms": _milliseconds}
    spreads = {name: f" ({_share(deviations[name])})" for name in FIGURES[:4] if name in deviations}
    return [shown[name](means[name]) + spreads.get(name, "") for name in FIGURES]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _epsilon(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _grid(headings: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(headings)
    return "".join(f"| {' | '.join(map(_plain, line))} |\n" for line in (headings, rule, *lines))


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
