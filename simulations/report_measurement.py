"""The report's section on what the hospitals measured of the release under privacy, where they were asked."""

from collections.abc import Mapping
from typing import Any

from fedward.simulations.markup import Section, missing, paragraph, table
from fedward.simulations.wording import counted, decimal, percent, small

_FIGURES = (("auc", "AUC"), ("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy"))


def measurement_sections(metrics: Mapping[str, Any]) -> list[Section]:
    """One section, or none where the study asked for no measurement."""
    found = metrics.get("measurement")
    if found is None:
        return []
    body = paragraph(_in_words(found))
    body += (
        missing("No figures: the hospitals' counts were not asked for.") if found["figures"] is None else ""
    )
    title = "Measured by the hospitals, under privacy"
    return [Section("measurement", title, body + table("In figures", _COLUMNS, _rows(found), kind="full"))]


_COLUMNS = ("What", "Value", "Standard error")


def _in_words(found: Mapping[str, Any]) -> str:
    text = (
        f"{counted(found['hospitals'], 'hospital')} measured the release on {found['on']} "
        f"({found['num_examples']:,} by their declared counts), each with noise that is charged to its "
        "budget. The model was trained on these very records, so the figures flatter it; the standard errors "
        "hold the noise's part."
    )
    if found["fisher"] is not None:
        text += f" A Fisher by output channel, for a later study's EWC, is in {found['fisher']}."
    return text


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    if found["figures"] is not None:
        figures, errors = found["figures"], found["standard_errors"]
        rows = [(name, _value(key, figures[key]), _value(key, errors[key])) for key, name in _FIGURES]
    noise = [(f"Noise multiplier, {kind}", small(v), "") for kind, v in found["noise_multipliers"].items()]
    return [*rows, *noise]


def _value(key: str, value: float | None) -> str:
    if value is None:
        return "hidden by the noise"
    return decimal(value) if key == "auc" else percent(value)
