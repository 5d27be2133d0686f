"""metrics.json: what a run measured, with its schema as a table and a writer that refuses anything else.

Every key of the table is present in every file; a figure that was not measured is null, and never NaN.
Further keys are allowed, so that a later version can add without breaking a reader.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedward.common.datasets import TASKS
from fedward.common.files import write_atomically

SCHEMA = "fedward.metrics/1"
COMPARISONS = ("public_only", "one_hospital", "pooled")

# A field's rule: one of these words, "?" behind it where null is allowed, a dict for an object with these
# keys, a list of one rule for a list.
#   text, count (whole, >= 0), amount (>= 0), share (0 to 1), settings (an object with any keys)
_FIGURES = {"auc": "share?", "accuracy": "share?", "balanced_accuracy": "share?"}
_REFUSAL = {"hospital": "text?", "name": "text", "message": "text"}
_TABLE: dict[str, Any] = {
    "schema": "text",
    "dataset": {
        "name": "text",
        "source": "text",
        "sha256": "text",
        "task": "text",
        "classes": ["text"],
        "counts": {"train": "count", "val": "count", "test": "count"},
    },
    "study": "settings",
    "rounds": [
        {
            "round": "count",
            **_FIGURES,
            "uplink_bytes": "count",
            "downlink_bytes": "count",
            "seconds": "amount",
            "epsilon": "amount?",
            "replies": "count",
            "refusals": [_REFUSAL],
        }
    ],
    "hospitals": [
        {
            "name": "text",
            "num_examples": "count",
            "declared": "count",
            "epsilon": "amount?",
            "delta": "share?",
            "unit": "text",
            "budget": "amount?",
            "auc": "share?",
        }
    ],
    "release": {
        "bundle": "text",
        "digest": "text",
        "bundle_bytes": "count",
        "bytes": "count",
        "fp32_bytes": "count",
        **_FIGURES,
        "agreement": "share?",
        "latency_ms": "amount?",
        "fp32_latency_ms": "amount?",
    },
    "comparison": "settings?",
    "timing": {"train_seconds": "amount", "overhead_seconds": "amount"},
    "environment": "settings",
}

# Only where the study asked its hospitals for a measurement.
_MEASUREMENT = {
    "on": "text",
    "hospitals": "count",
    "num_examples": "count",
    "noise_multipliers": "settings",
    "figures": "settings?",
    "standard_errors": "settings?",
    "fisher": "text?",
    "uplink_bytes": "count",
    "downlink_bytes": "count",
    "refusals": [_REFUSAL],
}
_STANDARD_ERRORS = dict.fromkeys(_FIGURES, "amount?")


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Refuse metrics that do not follow `fedward.metrics/1`.

    Raises:
        ValueError: naming the first field that is missing, of another type, out of range or not finite.
    """
    _check_field("metrics", metrics, _TABLE)
    _check_plain("metrics", metrics)
    if metrics["schema"] != SCHEMA:
        raise ValueError(f"metrics.schema must be {SCHEMA!r}, not {metrics['schema']!r}.")
    if metrics["dataset"]["task"] not in TASKS:
        raise ValueError(f"metrics.dataset.task must be one of {', '.join(TASKS)}.")
    if "measurement" in metrics:
        _check_measurement(metrics["measurement"])
    for name, figures in (metrics["comparison"] or {}).items():
        if name not in COMPARISONS:
            raise ValueError(f"metrics.comparison has {', '.join(COMPARISONS)}, but not {name!r}.")
        if figures is not None:
            _check_field(f"metrics.comparison.{name}", figures, _FIGURES)


def _check_measurement(measurement: Any) -> None:
    where = "metrics.measurement"
    _check_field(where, measurement, _MEASUREMENT)
    for name, rules in (("figures", _FIGURES), ("standard_errors", _STANDARD_ERRORS)):
        if measurement[name] is not None:
            _check_field(f"{where}.{name}", measurement[name], rules)


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Check the metrics and write them as indented JSON, whole or not at all.

    Raises:
        ValueError: as `check_metrics`; nothing is written.
        OutputRefused: the folder cannot be written.
    """
    check_metrics(metrics)
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode("utf-8"))


def _check_field(where: str, value: object, rule: Any) -> None:
    if isinstance(rule, dict):
        _check_object(where, value, rule)
    elif isinstance(rule, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, not {type(value).__name__}.")
        for index, item in enumerate(value):
            _check_field(f"{where}[{index}]", item, rule[0])
    elif value is None:
        if not rule.endswith("?"):
            raise ValueError(f"{where} must be given; it is null.")
    elif not _fits(value, rule.removesuffix("?")):
        raise ValueError(f"{where} must be a {rule.removesuffix('?')}, not {value!r:.80}.")


def _check_object(where: str, value: object, rules: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, not {type(value).__name__}.")
    for key, rule in rules.items():
        if key not in value:
            raise ValueError(f"{where}.{key} is missing.")
        _check_field(f"{where}.{key}", value[key], rule)


def _fits(value: object, word: str) -> bool:
    if word == "text":
        return isinstance(value, str)
    if word == "settings":
        return isinstance(value, Mapping)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    if word == "count":
        return isinstance(value, int) and value >= 0
    return 0 <= value <= (1 if word == "share" else math.inf)


def _check_plain(where: str, value: object) -> None:
    """Refuse whatever JSON does not have, at any depth, before a file is begun."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r:.80}, which is not text.")
            _check_plain(f"{where}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(f"{where}[{index}]", item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is not a finite number; a figure that was not measured is null.")
    elif isinstance(value, str):
        _check_text(where, value)
    elif value is not None and not isinstance(value, bool | int | float):
        raise ValueError(f"{where} is a {type(value).__name__}, which JSON does not have.")


def _check_text(where: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds text that is not valid Unicode.") from error
