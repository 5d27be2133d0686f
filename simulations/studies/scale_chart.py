"""The chart of the study `scale`: memory and time by number of hospitals, as one SVG that stands alone."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from fedward.common.files import write_atomically
from fedward.simulations.studies.rows import Row

_MEGABYTE = 1e6
_KILOBYTE = 1024
_INK, _ACCENT, _MUTED = "#1d2733", "#0b6e99", "#8a949e"


def write_chart(path: Path, rows: list[Row]) -> Path:
    """Draw the rows, each with its number of hospitals, and return the file's path.

    Raises:
        OutputRefused: it cannot be written.
    """
    sizes = [row["key"]["hospitals"] for row in rows]
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "scale"}):
        figure = Figure(figsize=(7.2, 6.4), layout="constrained")
        memory, time = figure.subplots(2, 1)
        _draw_memory(memory, sizes, rows)
        _draw_time(time, sizes, rows)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_atomically(path, buffer.getvalue())
    return path


def _draw_memory(axes: Any, sizes: list[int], rows: list[Row]) -> None:
    above = [row["above_base_kb"] * _KILOBYTE / _MEGABYTE for row in rows]
    kept = [row["received_bytes"] / row["key"]["rounds"] / _MEGABYTE for row in rows]
    axes.plot(sizes, above, color=_ACCENT, marker="o", label="aggregator's peak above its base")
    axes.plot(sizes, kept, color=_MUTED, linestyle="--", label="what one round's replies would take, if kept")
    axes.set(title="Memory of the aggregator", ylabel="MB", yscale="log")
    _finish(axes, sizes)


def _draw_time(axes: Any, sizes: list[int], rows: list[Row]) -> None:
    wall = [1000 * row["seconds_a_site"] for row in rows]
    own = [1000 * row["aggregator_cpu_seconds_a_site"] for row in rows]
    axes.plot(sizes, wall, color=_MUTED, marker="o", label="round's time over hospitals (they train in turn)")
    axes.plot(sizes, own, color=_ACCENT, marker="o", label="of which the aggregator's own CPU time")
    axes.set(title="Time of a site in a round", ylabel="ms", xlabel="hospitals", ylim=(0, None))
    _finish(axes, sizes)


def _finish(axes: Any, sizes: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    axes.minorticks_off()
    axes.grid(color="#e3e7ea", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, labelcolor=_INK)
