"""The charts of the study `medmnist`: accuracy against epsilon by set, and on average against bytes and time.

SVGs that stand alone. Accuracy is that of the column ACC, which decides as the published ones do. Averages
are over the sets that every cell was measured on, as are the published ones beside them.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullFormatter

from fedward.common.files import write_atomically
from fedward.simulations.studies.medmnist_table import Average, Measured, Table, over_common_sets
from fedward.simulations.studies.published import BITMEDVIT, RESNET_18

ACCURACY = "accuracy_at_frequencies"
_INK, _MUTED, _GRID = "#1d2733", "#6c757d", "#e3e7ea"
_COLOURS = ("#0b6e99", "#c2571a", "#3d8b37", "#7a4fa3", "#a3324f", "#6b6b2a")
_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p", "h")
_RIVALS = ((RESNET_18, (0, (5, 2))), (BITMEDVIT, (0, (1.5, 1.5))))
_MARKERS = {"central": "s", "federated": "o"}
_COLUMNS = 3
_NARROWEST = 7.2  # inches: three columns of a legend
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
    figure = Figure(figsize=(max(_NARROWEST, 3.2 * columns), 0.9 + 2.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes, name in zip(panels, sets, strict=False):
        _draw_set(axes, name, [one for one in table.measured if one.set == name], epsilons)
        axes.set_xlabel("epsilon")
    for axes in panels[::columns]:
        axes.set_ylabel("test accuracy")
    for axes in panels[len(sets) :]:
        axes.set_axis_off()
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
    for rival, dashes in _RIVALS:
        if name in rival.accuracies:
            label = f"{rival.name} (published, not private)"
            axes.axhline(rival.accuracies[name], color=_MUTED, linestyle=dashes, linewidth=1, label=label)
    axes.set_xticks(range(len(epsilons)), ["none" if one is None else f"{one:g}" for one in epsilons])
    axes.set_xlim(-0.3, len(epsilons) - 0.7)
    axes.set_title(name, fontsize=9, loc="left")
    _finish(axes)


def _scatter(averages: Sequence[Average], name: str, label: str) -> Figure:
    """A point a cell: students by their marker, epsilons by colour, federated ones filled."""
    figure = Figure(figsize=(_NARROWEST, 4.8), layout="constrained")
    axes = figure.subplots()
    students = list(dict.fromkeys(one.cell.student for one in averages))
    epsilons = sorted({one.cell.epsilon for one in averages}, key=_privacy)
    for one in averages:
        colour = _COLOURS[epsilons.index(one.cell.epsilon) % len(_COLOURS)]
        axes.plot(
            [_drawn(one, name)],
            [_drawn(one, ACCURACY)],
            linestyle="None",
            marker=_SHAPES[students.index(one.cell.student) % len(_SHAPES)],
            color=colour,
            markerfacecolor=colour if one.cell.mode == "federated" else "white",
            markersize=6,
        )
    sets = averages[0].sets
    rivals = _draw_rivals(axes, sets, has_bytes=name == "bytes")
    _scale(axes, name)
    axes.set(xlabel=label, ylabel=f"accuracy, mean of {_sets(sets)}")
    _finish(axes)
    modes = dict.fromkeys(one.cell.mode for one in averages)
    handles = [*_keys_of(students, epsilons, list(modes)), *rivals]
    columns = min(4, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _scale(axes: Any, name: str) -> None:
    """Bytes differ by factors; milliseconds are compared from zero."""
    axes.margins(x=0.1, y=0.1)
    if name == "bytes":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0.0)


def _keys_of(students: Sequence[str], epsilons: Sequence[float | None], modes: Sequence[str]) -> list[Line2D]:
    """The legend's marks for the three things that a point's looks tell."""
    looks = [(name, shape, _INK, _INK) for name, shape in zip(students, _SHAPES, strict=False)]
    looks += [(_in_words(one), "o", colour, colour) for one, colour in zip(epsilons, _COLOURS, strict=False)]
    looks += [(mode, "o", _INK, _INK if mode == "federated" else "white") for mode in modes]
    return [
        Line2D([], [], linestyle="None", label=label, marker=shape, color=edge, markerfacecolor=face)
        for label, shape, edge, face in looks
    ]


def _in_words(epsilon: float | None) -> str:
    return "not private" if epsilon is None else f"epsilon {epsilon:g}"


def _drawn(one: Average, name: str) -> float:
    """NaN where a figure is missing, which is not drawn."""
    value = one.means[name]
    return float("nan") if value is None else value


def _draw_rivals(axes: Any, sets: Sequence[str], has_bytes: bool) -> list[Any]:
    """Published means over the same sets: a star where the file's size is known, else a line across."""
    drawn = []
    for rival, dashes in _RIVALS:
        level, label = rival.mean_over(sets)[0], f"{rival.name} (published, not private)"
        if level is None:
            continue
        if has_bytes and rival.megabytes is not None:
            size = 1e6 * rival.megabytes
            drawn += axes.plot([size], [level], "*", color=_MUTED, markersize=10, label=label)
        else:
            drawn.append(axes.axhline(level, color=_MUTED, linestyle=dashes, linewidth=1, label=label))
    return drawn


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
