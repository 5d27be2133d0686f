"""Calibration finds a scaling that is known and thresholds that can be worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import Split
from fedward.common.decision import decide, probabilities
from fedward.common.metrics import balanced_accuracy
from fedward.server import calibration
from fedward.server.calibration import Calibration, calibrate
from fedward.server.reference import EXPLANATION

TASKS = {"binary": 2, "multi-class": 4, "multi-label": 3}
Calibrator = Callable[..., Calibration]


@pytest.fixture
def calibrated(
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> Calibrator:
    """calibrated(logits, labels, task, decision) -> what is found where the student gives these logits."""

    def run(
        logits: np.ndarray, labels: np.ndarray, task: str = "binary", decision: str = "calibrated"
    ) -> Calibration:
        classes = tuple(f"class {k}" for k in range(logits.shape[1]))
        study = make_study(make_local(task=task, classes=classes), decision=decision)
        monkeypatch.setattr(calibration, "student_logits", lambda local, latents, images: logits)
        records = Split(np.zeros((len(labels), 16, 16, 1), np.uint8), labels)
        return calibrate(study, np.zeros(3, np.float32), records)

    return run


def _drawn(task: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that were drawn by them: perfectly calibrated at temperature 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, TASKS[task])) * 2
    p = probabilities(logits, task)
    if task == "multi-label":
        return logits, (rng.random(p.shape) < p).astype(np.int64)
    return logits, (rng.random((count, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(max=TASKS[task] - 1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scaling", [0.25, 1.0, 3.0])
def test_the_temperature_recovers_a_known_scaling(calibrated: Calibrator, task: str, scaling: float) -> None:
    logits, labels = _drawn(task, 20_000)
    found = calibrated(logits * scaling, labels, task, "balanced")
    assert found.calibration["temperature"] == pytest.approx(scaling, rel=0.05)
    assert found.calibration["images"] == 20_000


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_temperature_stays_in_its_bounds_whatever_the_records(calibrated: Calibrator, sign: float) -> None:
    """Perfectly right logits ask for temperature 0, perfectly wrong ones for infinity."""
    labels = np.arange(20) % 2
    logits = sign * np.stack([1 - 2 * labels, 2 * labels - 1], axis=1).astype(float)
    assert 0.05 <= calibrated(logits, labels).calibration["temperature"] <= 20.0


def test_a_threshold_worked_out_by_hand(calibrated: Calibrator) -> None:
    """Scores .5 1 2 3 4 with labels 0 0 1 0 1: above 1.5, both positives and one of three negatives."""
    scores, labels = np.array([0.5, 1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 0, 1])
    found = calibrated(np.stack([np.zeros(5), scores], axis=1), labels)
    assert found.thresholds == (1.5,)
    assert found.source == "reference half A"
    # (1 + 2/3) / 2 there, against 1/2 at threshold 0
    decisions = decide(np.stack([np.zeros(5), scores], axis=1), "binary", found.thresholds)
    assert balanced_accuracy(decisions, labels) == pytest.approx(5 / 6)


def test_a_threshold_is_for_balanced_accuracy_and_not_for_the_larger_class(calibrated: Calibrator) -> None:
    """One negative among six positives: calling all positive is right six times in seven, and of no use."""
    scores, labels = np.arange(1.0, 8.0), np.array([1, 1, 0, 1, 1, 1, 1])
    assert calibrated(np.stack([np.zeros(7), scores], axis=1), labels).thresholds == (3.5,)


def test_among_equally_good_thresholds_nought_is_kept(calibrated: Calibrator) -> None:
    scores, labels = np.array([-3.0, -1.0, 2.0, 5.0]), np.array([0, 0, 1, 1])
    assert calibrated(np.stack([np.zeros(4), scores], axis=1), labels).thresholds == (0.0,)


def test_each_label_of_several_has_its_own_threshold(calibrated: Calibrator) -> None:
    logits = np.array([[1.0, -4.0], [2.0, -3.0], [3.0, -2.0], [4.0, -1.0]])
    labels = np.array([[0, 0], [0, 0], [1, 0], [1, 1]])
    assert calibrated(logits, labels, "multi-label").thresholds == (2.5, -1.5)


def test_a_label_that_never_occurs_keeps_nought(calibrated: Calibrator) -> None:
    logits, labels = np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([[0, 0], [0, 1]])
    assert calibrated(logits, labels, "multi-label").thresholds == (0.0, 1.5)


def test_several_classes_keep_the_argmax_and_say_so(calibrated: Calibrator) -> None:
    logits, labels = _drawn("multi-class", 50)
    found = calibrated(logits, labels, "multi-class")
    assert (found.thresholds, found.source) == ((0.0,) * 4, "threshold 0")


@pytest.mark.parametrize("task", TASKS)
def test_the_balanced_rule_is_threshold_nought(calibrated: Calibrator, task: str) -> None:
    logits, labels = _drawn(task, 50)
    found = calibrated(logits + 3.0, labels, task, "balanced")
    assert set(found.thresholds) == {0.0}
    assert len(found.thresholds) == (1 if task == "binary" else TASKS[task])
    assert found.source == "threshold 0"


def test_a_study_without_reference_data_says_that_it_is_not_calibrated(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    study = make_study(make_local(), decision="calibrated")
    found = calibrate(study, np.zeros(3, np.float32), None)
    assert found == Calibration((0.0,), {"temperature": None, "note": EXPLANATION}, "threshold 0")
    assert "no calibration" in EXPLANATION
