"""The charts of the study `medmnist`: accuracy against epsilon by set, and on average against bytes and time.

SVGs that stand alone. Averages are over the sets that every cell of the chart was measured on, as are the
published ones beside them.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from fedward.common.files import write_atomically
from fedward.simulations.studies.medmnist_table import Average, Cell, Measured, Table, over_common_sets
from fedward.simulations.studies.published import BITMEDVIT, RESNET_18

ACCURACY = "accuracy_at_frequencies"
_INK, _GRID = "#1d2733", "#e3e7ea"
_COLOURS = ("#0b6e99", "#c2571a", "#3d8b37", "#7a4fa3", "#a3324f", "#6b6b2a")
_RIVALS = ((RESNET_18, "#6c757d", (0, (5, 2))), (BITMEDVIT, "#6c757d", (0, (1.5, 1.5))))
_MARKERS = {"central": "s", "federated": "o"}
_COLUMNS = 3
_STYLE = {"font.size": 9, "svg.fonttype": "none", "text.parse_math": False, "text.color": _INK}


def write_charts(out: Path, table: Table) -> list[Path]:
    """Draw what there is to draw, and return the files' paths.

    Raises:
        OutputRefused: they cannot be written.
    """
    if not table.measured:
        return []
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "medmnist"}):
        paths = [_saved(out / "accuracy_epsilon.svg", _by_epsilon(table))]
        for name, figure, label in (
            ("bytes", "bytes", "bytes of the release's model"),
            ("latency", "latency_ms", "ms an image, onnxruntime, one thread"),
        ):
            if averages := over_common_sets(table):
                paths.append(_saved(out / f"accuracy_{name}.svg", _scatter(averages, figure, label)))
    return paths


def _saved(path: Path, figure: Figure) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_atomically(path, buffer.getvalue())
    return path


def _by_epsilon(table: Table) -> Figure:
    """A panel a set, a line a mode and student, published accuracies across."""
    sets = list(dict.fromkeys(one.set for one in table.measured))
    epsilons = sorted({one.cell.epsilon for one in table.measured}, key=_privacy)
    columns = min(_COLUMNS, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(max(5.2, 3.2 * columns), 0.9 + 2.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes, name in zip(panels, sets, strict=False):
        _draw_set(axes, name, [one for one in table.measured if one.set == name], epsilons)
    for axes in panels[len(sets) :]:
        axes.set_axis_off()
    figure.supylabel("test accuracy at class frequencies")
    figure.supxlabel("epsilon of each hospital")
    _legend(figure, panels[: len(sets)])
    return figure


def _privacy(epsilon: float | None) -> float:
    return float("inf") if epsilon is None else epsilon


def _draw_set(axes: Any, name: str, own: Sequence[Measured], epsilons: Sequence[float | None]) -> None:
    lines = dict.fromkeys((one.cell.mode, one.cell.student) for one in own)
    students = list(dict.fromkeys(student for _, student in lines))
    for mode, student in lines:
        points = {
            one.cell.epsilon: one for one in own if (one.cell.mode, one.cell.student) == (mode, student)
        }
        shown = [(x, points[epsilon]) for x, epsilon in enumerate(epsilons) if epsilon in points]
        axes.errorbar(
            [x for x, _ in shown],
            [one.means[ACCURACY] for _, one in shown],
            yerr=[one.deviations.get(ACCURACY, 0.0) for _, one in shown],
            label=f"{mode}, {student}",
            color=_COLOURS[students.index(student) % len(_COLOURS)],
            linestyle="--" if mode == "central" else "-",
            marker=_MARKERS[mode],
            markersize=4,
            capsize=2,
        )
    for rival, colour, dashes in _RIVALS:
        if name in rival.accuracies:
            label = f"{rival.name} (published, not private)"
            axes.axhline(rival.accuracies[name], color=colour, linestyle=dashes, linewidth=1, label=label)
    axes.set_xticks(range(len(epsilons)), ["none" if one is None else f"{one:g}" for one in epsilons])
    axes.set_xlim(-0.3, len(epsilons) - 0.7)
    axes.set_title(name, fontsize=9, loc="left")
    _finish(axes)


def _scatter(averages: Sequence[Average], figure_name: str, label: str) -> Figure:
    """A point a cell; students are named, epsilons coloured, modes marked."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    epsilons = sorted({one.cell.epsilon for one in averages}, key=_privacy)
    for mode, marker in _MARKERS.items():
        for epsilon, colour in zip(epsilons, _COLOURS, strict=False):
            own = [one for one in averages if (one.cell.mode, one.cell.epsilon) == (mode, epsilon)]
            if own:
                xs, ys = _column(own, figure_name), _column(own, ACCURACY)
                name = "not private" if epsilon is None else f"epsilon {epsilon:g}"
                axes.scatter(xs, ys, color=colour, marker=marker, s=30, label=f"{mode}, {name}")
    for cell, x, y in _highest(averages, figure_name):
        axes.annotate(cell.student, (x, y), xytext=(0, 7), textcoords="offset points", ha="center")
    sets = averages[0].sets
    _draw_rivals(axes, sets, has_bytes=figure_name == "bytes")
    axes.set(xscale="log", xlabel=label, ylabel=f"accuracy at class frequencies, mean of {_sets(sets)}")
    axes.margins(x=0.15, y=0.15)
    _finish(axes)
    _legend(figure, [axes])
    return figure


def _column(averages: Sequence[Average], name: str) -> list[float]:
    """NaN where a figure is missing, which is not drawn."""
    return [float("nan") if (mean := one.means[name]) is None else mean for one in averages]


def _highest(averages: Sequence[Average], figure_name: str) -> list[tuple[Cell, Any, Any]]:
    """Each student's best point, where its name is written."""
    best: dict[str, Average] = {}
    for one in averages:
        known = best.get(one.cell.student)
        if known is None or (one.means[ACCURACY] or 0.0) > (known.means[ACCURACY] or 0.0):
            best[one.cell.student] = one
    return [(one.cell, one.means[figure_name], one.means[ACCURACY]) for one in best.values()]


def _draw_rivals(axes: Any, sets: Sequence[str], has_bytes: bool) -> None:
    for rival, colour, dashes in _RIVALS:
        level = rival.mean_over(sets)[0]
        if level is None:
            continue
        label = f"{rival.name} (published, not private)"
        if has_bytes and rival.megabytes is not None:
            axes.scatter([1e6 * rival.megabytes], [level], color=colour, marker="*", s=70, label=label)
        else:
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=1, label=label)


def _sets(sets: Sequence[str]) -> str:
    return sets[0] if len(sets) == 1 else f"{len(sets)} sets"


def _finish(axes: Any) -> None:
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, panels: Sequence[Any]) -> None:
    """One legend below for all panels, each name once."""
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = min(3, len(entries))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
