"""A manifest is taken only with every field there, of its type, and in agreement with the others."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedward.common.errors import BundleRefused
from fedward.common.files import parse_canonical
from fedward.common.manifest import check_manifest

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def manifest(make_release: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    return dict(parse_canonical((make_release(tmp_path / "b") / "manifest.json").read_bytes()))


def _multi_class(m: dict[str, Any], rule: str, thresholds: list[float]) -> None:
    m.update(task="multi-class", classes=["a", "b", "c"])
    m["decision"].update(rule=rule, thresholds=thresholds)


WRONG: dict[str, Change] = {
    "schema": lambda m: m.update(schema="fedward.release/2"),
    "missing": lambda m: m.pop("study"),
    "unknown": lambda m: m.update(extra=1),
    "empty study": lambda m: m.update(study=""),
    "version 0": lambda m: m.update(version=0),
    "version true": lambda m: m.update(version=True),
    "version 1.0": lambda m: m.update(version=1.0),
    "parent": lambda m: m.update(parent="A" * 64),
    "task": lambda m: m.update(task="regression"),
    "task list": lambda m: m.update(task=["binary"]),
    "classes text": lambda m: m.update(classes="ab"),
    "classes twice": lambda m: m.update(classes=["a", "a"]),
    "three classes": lambda m: m.update(classes=["a", "b", "c"]),
    "channels": lambda m: m["preprocessing"].update(channels=2),
    "channels 1.0": lambda m: m["preprocessing"].update(channels=1.0),
    "channels true": lambda m: m["preprocessing"].update(channels=True),
    "height": lambda m: m["preprocessing"].update(height=1 << 20),
    "std 0": lambda m: m["preprocessing"].update(std=[0.0]),
    "std of 3": lambda m: m["preprocessing"].update(std=[1.0, 1.0, 1.0]),
    "mean nan": lambda m: m["preprocessing"].update(mean=[float("nan")]),
    "crop": lambda m: m["preprocessing"].update(crop=1),
    "rule": lambda m: m["decision"].update(rule="vote"),
    "thresholds": lambda m: m["decision"].update(thresholds=[0.0, 0.0]),
    "argmax with a threshold": lambda m: m["decision"].update(rule="argmax", thresholds=[0.5]),
    "threshold of none": lambda m: m["decision"].update(thresholds=[]),
    "huge integer": lambda m: m["decision"].update(thresholds=[10**400]),
    "temperature 0": lambda m: m["calibration"].update(temperature=0),
    "no temperature": lambda m: m.update(calibration={}),
    "calibration null": lambda m: m.update(calibration=None),
    "epsilon": lambda m: m["privacy"]["sites"][0].update(epsilon=-1),
    "site": lambda m: m["privacy"]["sites"][0].pop("delta"),
    "noise": lambda m: m["privacy"].update(reproducible_noise=0),
    "model size": lambda m: m["model"].update(size=(1 << 30) + 1),
    "format": lambda m: m["model"].update(format="pickle"),
    "digest": lambda m: m["model"].update(sha256="0" * 63),
    "files": lambda m: m["files"].pop("golden.npz"),
    "more files": lambda m: m["files"].update(more={"sha256": "0" * 64, "size": 1}),
    "provenance": lambda m: m.update(provenance=[]),
    "expires": lambda m: m.update(expires="2030-02-30T00:00:00Z"),
    "local time": lambda m: m.update(expires="2030-01-01T00:00:00+02:00"),
    "short time": lambda m: m.update(expires="2030-1-1T0:0:0Z"),
    "multi-label argmax": lambda m: (
        m.update(task="multi-label"),
        m["decision"].update(rule="argmax", thresholds=[0.0, 0.0]),
    ),
    "multi-class of 2 thresholds": lambda m: _multi_class(m, "threshold", [0.0, 0.0]),
}

RIGHT: dict[str, Change] = {
    "as it is": lambda m: None,
    "no privacy": lambda m: m["privacy"]["sites"][0].update(epsilon=None, delta=None),
    "no sites": lambda m: m["privacy"].update(sites=[]),
    "child": lambda m: m.update(parent="a" * 64, version=7),
    "calibrated": lambda m: m["calibration"].update(temperature=1.5, source="half A"),
    "argmax": lambda m: m["decision"].update(rule="argmax", thresholds=[0.0]),
    "argmax of none": lambda m: m["decision"].update(rule="argmax", thresholds=[]),
    "multi-class": lambda m: _multi_class(m, "argmax", [0.0, 0.0, 0.0]),
    "multi-class thresholds": lambda m: _multi_class(m, "threshold", [0.0, -1, 2.5]),
    "multi-label of 1": lambda m: m.update(task="multi-label", classes=["a"]),
    "leap day": lambda m: m.update(expires="2028-02-29T23:59:59Z"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_manifest_is_refused(manifest: dict[str, Any], name: str) -> None:
    WRONG[name](manifest)
    with pytest.raises(BundleRefused):
        check_manifest(manifest)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_manifest_is_taken_as_it_is(manifest: dict[str, Any], name: str) -> None:
    RIGHT[name](manifest)
    before = copy.deepcopy(manifest)
    assert check_manifest(manifest) == before


@pytest.mark.parametrize("value", [None, [], "", 1, True])
def test_no_field_takes_just_anything(manifest: dict[str, Any], value: object) -> None:
    for field in manifest:
        if (field, value) == ("parent", None):
            continue
        if field == "version" and value == 1:
            continue
        with pytest.raises(BundleRefused):
            check_manifest({**manifest, field: value})
    with pytest.raises(BundleRefused):
        check_manifest(value)
