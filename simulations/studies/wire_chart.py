"""The chart of the study `wire`: accuracy and AUC against bits a weight, as one SVG that stands alone."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from fedward.common.files import write_atomically
from fedward.simulations.studies.rows import Row

_INK, _ACCENT = "#1d2733", "#0b6e99"


def write_chart(path: Path, table: dict[str, Row]) -> Path:
    """Draw the means of `wire.summary` with their standard deviations, and return the file's path.

    Raises:
        OutputRefused: it cannot be written.
    """
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "wire"}):
        figure = Figure(figsize=(7.2, 6.4), layout="constrained")
        for axes, name, label in zip(
            figure.subplots(2, 1), ("auc", "accuracy"), ("AUC", "accuracy"), strict=True
        ):
            _draw(axes, name, label, table)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_atomically(path, buffer.getvalue())
    return path


def _draw(axes: Any, name: str, label: str, table: dict[str, Row]) -> None:
    for case, row in table.items():
        bits = row["uplink_bits"] + row["downlink_bits"]
        axes.errorbar(bits, row[name], yerr=row.get(f"{name}_sd"), color=_ACCENT, marker="o", capsize=3)
        axes.annotate(case, (bits, row[name]), xytext=(5, 4), textcoords="offset points", color=_INK)
    axes.set(ylabel=f"{label}, mean and deviation of seeds", xlabel="bits a weight, up and down together")
    axes.set_xscale("log", base=2)
    axes.grid(color="#e3e7ea", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
