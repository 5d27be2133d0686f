"""Calibration on reference half A: a temperature, and on request thresholds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from fedward.common.codec import Vector
from fedward.common.config import Study
from fedward.common.datasets import Split
from fedward.common.decision import probabilities
from fedward.common.metrics import balanced_accuracy
from fedward.server.reference import EXPLANATION, student_logits


@dataclass(frozen=True)
class Calibration:
    """What half A gave.

    Attributes:
        thresholds: in logits, as `fedward.common.decision.decide` takes them.
        calibration: the manifest's entry; its temperature is None without reference data.
        source: where the thresholds come from, in words.
    """

    thresholds: tuple[float, ...]
    calibration: dict[str, Any]
    source: str


def calibrate(study: Study, latents: Vector, records: Split | None) -> Calibration:
    """Fit a temperature (Guo et al. 2017, arXiv 1706.04599) and, if the study asks, thresholds on half A."""
    task, classes = study.local.task, len(study.local.classes)
    zeros = (0.0,) * (1 if task == "binary" else classes)
    if records is None:
        return Calibration(zeros, {"temperature": None, "note": EXPLANATION}, "threshold 0")
    logits = student_logits(study.local, latents, records.images)
    entry = {"temperature": _temperature(logits, records.labels, task), "images": len(records.images)}
    if study.decision == "balanced" or task == "multi-class":
        return Calibration(zeros, entry, "threshold 0")
    return Calibration(_thresholds(logits, records.labels, task), entry, "reference half A")


def _temperature(logits: Vector, labels: np.ndarray, task: str) -> float:
    """The temperature with the least negative log-likelihood, between 1/20 and 20."""

    def loss(log_temperature: float) -> float:
        p = probabilities(logits, task, float(np.exp(log_temperature))).clip(1e-12, 1 - 1e-12)
        if task == "multi-label":
            return float(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean())
        return float(-np.log(p[np.arange(len(labels)), labels]).mean())

    best = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(best.x))


def _thresholds(logits: Vector, labels: np.ndarray, task: str) -> tuple[float, ...]:
    """Thresholds of greatest balanced accuracy: one for binary, one a label for multi-label."""
    if task == "binary":
        return (_best_threshold(logits[:, 1] - logits[:, 0], labels),)
    return tuple(_best_threshold(logits[:, k], labels[:, k]) for k in range(labels.shape[1]))


def _best_threshold(scores: np.ndarray, positives: np.ndarray) -> float:
    if len(np.unique(positives)) < 2:
        return 0.0
    levels = np.unique(scores)
    between = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2])
    gains = [balanced_accuracy((scores > bar).astype(np.int64), positives) for bar in between]
    return float(between[int(np.argmax(gains))])
