"""The report's section on how the release came about, round by round."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedward.simulations.figures import Line, rounds_figure
from fedward.simulations.markup import Section, chart, folded, missing, paragraph, table
from fedward.simulations.wording import decimal, duration, percent, size, spent

_FIGURES = {"auc": "AUC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


def rounds_section(metrics: Mapping[str, Any]) -> Section:
    """AUC and accuracy by round, on half B of the reference data."""
    rounds = metrics["rounds"]
    lines = [line for key, name in _FIGURES.items() if (line := _by_round(rounds, key, name))]
    if not rounds:
        body = missing("No round was completed, so there is nothing to show by round.")
    elif not lines:
        body = missing(
            "There are no figures by round, because this study names no public reference data to measure "
            "the rounds on; the test split is read only once, at the end."
        )
    else:
        caption = "Measured after each round on half B of the study's public reference data; no hospital's "
        caption += "image and no test image is read for it."
        body = paragraph(_course(rounds)) + chart(rounds_figure(lines), _course(rounds), caption)
    return Section(
        "rounds",
        "AUC and accuracy by round",
        body + (_rounds_table(rounds) if rounds else ""),
        half=bool(lines),
    )


def _by_round(rounds: Sequence[Mapping[str, Any]], key: str, name: str) -> Line | None:
    values = np.array([np.nan if entry[key] is None else entry[key] for entry in rounds], dtype=np.float64)
    numbers = np.array([entry["round"] for entry in rounds], dtype=np.float64)
    return Line(name, numbers, values) if np.isfinite(values).any() else None


def _course(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The chart in a sentence: where it ended, and where it began."""
    measured = [entry for entry in rounds if any(entry[key] is not None for key in _FIGURES)]
    first, last = measured[0], measured[-1]
    text = f"After round {last['round']}: {_figures_of(last)}."
    return text if first is last else f"{text} After round {first['round']}: {_figures_of(first)}."


def _figures_of(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {decimal(entry[key])}" for key, name in _FIGURES.items())


def _rounds_table(rounds: Sequence[Mapping[str, Any]]) -> str:
    columns = ("Round", "AUC", "Accuracy", "Balanced", "Up", "Down", "Time", "Epsilon so far", "Replies")
    rows = [
        (
            str(entry["round"]),
            decimal(entry["auc"]),
            percent(entry["accuracy"]),
            percent(entry["balanced_accuracy"]),
            size(entry["uplink_bytes"]),
            size(entry["downlink_bytes"]),
            duration(entry["seconds"]),
            spent(entry["epsilon"]),
            str(entry["replies"]),
        )
        for entry in rounds
    ]
    return folded("Every round as a table", table("Every round", columns, rows, kind="full"))
