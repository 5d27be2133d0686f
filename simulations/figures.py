"""The report's figures: matplotlib drawings as inline SVG that follows the page's colours and fonts.

Colours are drawn as stand-ins and replaced by the page's CSS variables, so one drawing is right in
light, dark and print. Text stays text. The same data give the same bytes.
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, LINE, ACCENT, SOFT, WARN = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
SERIES = ("#020301", "#020302", "#020303", "#020304", "#020305", "#020306", "#020307")
_PAINTS = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", SOFT: "soft", WARN: "warn"}
_PAINTS |= {paint: f"series-{number}" for number, paint in enumerate(SERIES, start=1)}
_DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))

WIDTH = 4.9  # inches; at the page's column width one point of text is about 1.35 CSS pixels
MOST_ROWS = 24  # more named rows than this do not fit a page: then all are drawn sorted, without names
MOST_POINTS = 400  # of one curve; more cannot be seen and only make the page heavy

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "path.simplify": True,
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Line:
    """One named line: x and y (n,), y NaN where nothing was measured."""

    name: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bars:
    """One panel of horizontal bars: names, values from 0, and each value as a person reads it."""

    title: str
    names: Sequence[str]
    values: Sequence[float]
    texts: Sequence[str]


def rounds_figure(lines: Sequence[Line]) -> str:
    """Figures by round: one line each, x whole rounds, y shares between 0 and 1."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(3.0)
        for line, paint in zip(lines, SERIES, strict=False):
            axes.plot(line.x, line.y, color=paint, label=line.name, marker=_marker(len(line.x)), markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round")
        axes.grid(axis="x", visible=False)
        _legend_below(figure, len(lines), 3)
        return _svg(figure, "rounds")


def roc_figure(lines: Sequence[Line]) -> str:
    """ROC curves in the unit square with the diagonal of a coin's toss."""
    with matplotlib.rc_context(_STYLE):
        columns = 1 if max(len(line.name) for line in lines) > 30 else 2
        legend_rows = 0 if len(lines) == 1 else -(-len(lines) // columns)
        figure, axes = _canvas(3.9 + 0.19 * legend_rows)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        for number, line in enumerate(lines):
            dashes = _DASHES[number // len(SERIES) % len(_DASHES)]
            paint, x, y = SERIES[number % len(SERIES)], *_thinned(line.x, line.y)
            axes.plot(x, y, color=paint, linestyle=dashes, label=_short(line.name, 40))
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set(xlabel="false alarms among the negatives", ylabel="found among the positives")
        _legend_below(figure, legend_rows, columns)
        return _svg(figure, "roc")


def dots_figure(names: Sequence[str], values: Sequence[float], what: str) -> str:
    """One dot a name, with the mean and a band of one standard deviation either side of it."""
    with matplotlib.rc_context(_STYLE):
        figure, axes, rows, shown = _rows(names, values)
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        axes.axvspan(mean - spread, mean + spread, color=SOFT, linewidth=0)
        axes.axvline(mean, color=MUTED, linewidth=0.9)
        axes.scatter(shown, rows, color=ACCENT, s=26 if len(rows) <= MOST_ROWS else 8, zorder=3)
        axes.set_xlabel(f"{what}: line = mean, band = ±1 standard deviation" if len(values) > 1 else what)
        axes.set_xlim(max(-0.01, float(min(values)) - 0.05), min(1.01, float(max(values)) + 0.05))
        return _svg(figure, f"dots {what}")


def budget_figure(names: Sequence[str], spent: Sequence[float], budgets: Sequence[float | None]) -> str:
    """One bar a hospital for the epsilon spent, and a mark where its budget ends."""
    with matplotlib.rc_context(_STYLE):
        figure, axes, rows, shown = _rows(names, spent)
        limits = [np.nan if limit is None else limit for limit in _in_order(spent, budgets)]
        paints = [WARN if value > limit else ACCENT for value, limit in zip(shown, limits, strict=True)]
        axes.barh(rows, shown, height=0.55, color=paints)
        axes.scatter(limits, rows, marker="|", color=INK, s=130 if len(rows) <= MOST_ROWS else 12, zorder=3)
        axes.set_xlabel("epsilon spent; the upright mark is the budget")
        axes.set_xlim(left=0)
        return _svg(figure, "budget")


def bars_figure(panels: Sequence[Bars]) -> str:
    """Panels of labelled horizontal bars below each other, each with its own scale from zero."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 + 1.0 * len(panels)), layout="constrained")
        for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            _draw_bars(axes, panel)
        return _svg(figure, "bars " + " ".join(panel.title for panel in panels))


def _draw_bars(axes: Any, panel: Bars) -> None:
    rows = np.arange(len(panel.names))[::-1]
    longest = max([*panel.values, 1e-12])
    axes.barh(rows, panel.values, height=0.6, color=[ACCENT] + [MUTED] * (len(rows) - 1))
    for row, value, text in zip(rows, panel.values, panel.texts, strict=True):
        axes.text(value + longest * 0.02, row, _short(text, 30), va="center", color=INK)
    axes.set_yticks(rows, [_short(name, 22) for name in panel.names])
    axes.set(xlim=(0, longest * 1.28), xticks=[], title=panel.title)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def _canvas(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _rows(
    names: Sequence[str], values: Sequence[float]
) -> tuple[Figure, Any, npt.NDArray[np.int64], list[float]]:
    """A canvas with one row a name, first on top; too many names give sorted rows without names."""
    named = len(names) <= MOST_ROWS
    figure, axes = _canvas(0.75 + 0.27 * len(names) if named else 3.6)
    rows = np.arange(len(names))[::-1]
    axes.set_yticks(rows if named else [], [_short(name, 20) for name in names] if named else [])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)
    if not named:
        axes.set_ylabel(f"{len(names)} hospitals, sorted")
    return figure, axes, rows, _in_order(values, values)


def _in_order(keys: Sequence[float], values: Sequence[Any]) -> list[Any]:
    """`values` as given where rows are named, else sorted by `keys`, largest first."""
    if len(keys) <= MOST_ROWS:
        return list(values)
    return [values[i] for i in sorted(range(len(keys)), key=lambda i: -keys[i])]


def _thinned(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if len(x) <= MOST_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(np.int64))
    return x[kept], y[kept]


def _marker(points: int) -> str:
    """A line of a single round is a dot, or it would not be seen."""
    return "o" if points <= 25 else "None"


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _legend_below(figure: Figure, entries: int, columns: int) -> None:
    if entries:
        figure.legend(loc="outside lower left", ncols=columns, handlelength=1.8, columnspacing=1.4)


def _svg(figure: Figure, salt: str) -> str:
    """The drawing as an SVG element without prolog, metadata, foreign names or fonts of its own."""
    text = io.StringIO()
    # The salt keeps the ids of one figure apart from those of another on the same page.
    with matplotlib.rc_context({"svg.hashsalt": f"fedward {salt}"}), warnings.catch_warnings():
        # Text is drawn by the reader's fonts, so a glyph missing from matplotlib's is no matter.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(text, format="svg", transparent=True)
    return _for_page(text.getvalue())


def _for_page(svg: str) -> str:
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<style type.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for paint, name in _PAINTS.items():
        svg = svg.replace(paint, f"var(--{name})")
    return svg.strip()
