"""metrics.json: what was measured and nothing else; never NaN, never half a file."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.common.errors import OutputRefused
from fedward.simulations.metrics_file import check_metrics, write_metrics

FIGURES = {"auc": 0.9, "accuracy": 0.8, "balanced_accuracy": None}
METRICS = {
    "schema": "fedward.metrics/1",
    "dataset": {
        "name": "phantom",
        "source": "embedded",
        "sha256": "00",
        "task": "binary",
        "classes": ["normal", "Pneumonie é"],
        "counts": {"train": 1, "val": 2, "test": 3},
    },
    "study": {"seed": 0, "nested": {"list": [1, 2.5, None, "x", True]}},
    "rounds": [
        {
            "round": 1,
            **FIGURES,
            "uplink_bytes": 10,
            "downlink_bytes": 11,
            "seconds": 0.5,
            "epsilon": None,
            "replies": 1,
            "refusals": [{"hospital": "a", "name": "UpdateRefused", "message": "No."}],
        }
    ],
    "hospitals": [
        {
            "name": "a",
            "num_examples": 3,
            "declared": 5,
            "epsilon": 2.5,
            "delta": 1e-5,
            "unit": "image",
            "budget": 3,
            "auc": None,
        }
    ],
    "release": {
        "bundle": "release",
        "digest": "ab",
        "bundle_bytes": 9,
        "bytes": 4,
        "fp32_bytes": 40,
        **FIGURES,
        "agreement": 1,
        "latency_ms": 0.4,
        "fp32_latency_ms": None,
    },
    "comparison": {"pooled": FIGURES, "one_hospital": None},
    "timing": {"train_seconds": 1.0, "overhead_seconds": 0},
    "environment": {"python": "3.11"},
}


def _keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key outside the free-form objects."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        if key not in ("study", "environment", "comparison", "classes"):
            yield from _keys(item, (*path, key))


def _changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    metrics = copy.deepcopy(METRICS)
    *parents, last = path
    target: Any = metrics
    for key in parents:
        target = target[key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return metrics


def test_what_is_written_is_read_back_and_is_indented(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, METRICS)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == METRICS
    assert '\n  "dataset": {\n' in text
    assert "Pneumonie é" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("path", [path for path in _keys(METRICS) if isinstance(path[-1], str)], ids=str)
def test_every_key_is_required_and_refused_by_name(path: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{path[-1]} is missing"):
        check_metrics(_changed(path, KeyError))


@pytest.mark.parametrize(
    "wrong",
    [float("nan"), float("inf"), -1, object(), np.int64(3), True, b"x", []],
    ids=lambda value: type(value).__name__ + str(value)[:4],
)
@pytest.mark.parametrize("path", [path for path in _keys(METRICS) if isinstance(path[-1], str)], ids=str)
def test_no_field_takes_what_is_not_its_type(path: tuple[Any, ...], wrong: Any) -> None:
    if isinstance(wrong, list) and path[-1] in ("rounds", "hospitals", "classes", "refusals"):
        return
    with pytest.raises(ValueError, match=rf"metrics.*{path[-1]}"):
        check_metrics(_changed(path, wrong))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "fedward.metrics/2"),
        (("dataset", "task"), "regression"),
        (("dataset", "classes", 0), 3),
        (("release", "auc"), 1.01),
        (("hospitals", 0, "delta"), 2),
        (("rounds", 0), "x"),
        (("rounds", 0, "replies"), 2.0),
        (("release", "bytes"), None),
        (("study", "rate"), float("nan")),
        (("study", "nested", "list", 1), float("-inf")),
        (("environment", "path"), object()),
        (("environment", "text"), "\ud800"),
        (("study", 3), "x"),
        (("comparison", "other"), FIGURES),
        (("comparison", "pooled"), {"auc": 0.5}),
        (("comparison", "pooled"), 0.5),
        (("unforeseen",), float("nan")),
    ],
)
def test_what_json_or_the_schema_does_not_have_is_refused(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(ValueError, match=r"^metrics"):
        check_metrics(_changed(path, value))


def test_further_keys_and_a_missing_comparison_are_allowed() -> None:
    check_metrics(_changed(("unforeseen",), {"any": [1]}))
    check_metrics(_changed(("comparison",), None))


@pytest.mark.parametrize("metrics", [None, [], "x", {}])
def test_what_is_no_object_is_refused(metrics: Any) -> None:
    with pytest.raises(ValueError, match=r"^metrics"):
        check_metrics(metrics)


def test_a_refused_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_metrics(path, METRICS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite"):
        write_metrics(path, _changed(("study", "rate"), float("nan")))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputRefused):
        write_metrics(tmp_path / "absent" / "metrics.json", METRICS)


MEASUREMENT = {
    "on": "the hospitals' own training records",
    "hospitals": 3,
    "num_examples": 90,
    "noise_multipliers": {"metric": 5.0},
    "figures": FIGURES,
    "standard_errors": {"auc": 0.01, "accuracy": 0.02, "balanced_accuracy": None},
    "fisher": None,
    "uplink_bytes": 10,
    "downlink_bytes": 11,
    "refusals": [],
}


def test_a_measurement_is_checked_where_there_is_one() -> None:
    check_metrics({**METRICS, "measurement": MEASUREMENT})
    check_metrics({**METRICS, "measurement": {**MEASUREMENT, "figures": None, "standard_errors": None}})


@pytest.mark.parametrize(
    "changes",
    [
        {"on": None}, {"hospitals": -1}, {"fisher": 3}, {"refusals": [{}]}, {"figures": {"auc": 0.5}},
        {"figures": {**FIGURES, "auc": 1.5}}, {"standard_errors": {**FIGURES, "auc": -0.1}},
    ],
)  # fmt: skip
def test_a_measurement_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"metrics\.measurement"):
        check_metrics({**METRICS, "measurement": {**MEASUREMENT, **changes}})
