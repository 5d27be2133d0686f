"""From logits to probabilities and classes: the one place where a release's decision rule is computed.

numpy only: the coordinator's evaluation and the box beside the scanner call the same two functions.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating]


def probabilities(logits: Logits, task: str, temperature: float | None = None) -> npt.NDArray[np.float64]:
    """Calibrated probabilities (temperature scaling, Guo et al. 2017).

    Args:
        logits: (n, classes); the binary task has two classes.
        task: "binary", "multi-class" or "multi-label".
        temperature: divides the logits; None means 1, an uncalibrated release.

    Returns:
        float64 (n, classes): a softmax row that sums to 1, or for "multi-label" one sigmoid a class.
    """
    scaled = logits.astype(np.float64) / (1.0 if temperature is None else temperature)
    if task == "multi-label":
        return 0.5 * (1.0 + np.tanh(0.5 * scaled))  # the sigmoid, without overflow on either side
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def decide(logits: Logits, task: str, thresholds: Sequence[float] = ()) -> npt.NDArray[np.int64]:
    """The classes that a release decides for.

    Args:
        logits: (n, classes), as the model gives them: thresholds are in logits, before any temperature.
        task: "binary", "multi-class" or "multi-label".
        thresholds: none stands for zeros. Binary: one number, class 1 iff logit 1 - logit 0 exceeds it.
            Multi-class: one number a class, taken from its logit before the argmax.
            Multi-label: one number a class, class k is present iff its logit exceeds it.

    Returns:
        int64 (n,) class indices, or for "multi-label" (n, classes) of 0 and 1.
    """
    bars = np.asarray(thresholds if len(thresholds) else (0.0,), dtype=np.float64)
    wide = logits.astype(np.float64)
    if task == "multi-label":
        return np.asarray(wide > bars, dtype=np.int64)
    if task == "binary":
        return np.asarray(wide[:, 1] - wide[:, 0] > bars[0], dtype=np.int64)
    return np.asarray((wide - bars).argmax(axis=1), dtype=np.int64)
