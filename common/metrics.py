"""How good a classifier is: areas under the ROC curve, accuracies, and how sure one can be of them.

numpy only, so that a verifier and an edge device can measure what they run. The multi-class and
multi-label conventions are MedMNIST's (Yang et al., Scientific Data 2023): macro averages, one class
against the rest, label by label.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward.common.datasets import TASKS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def roc_auc(scores: npt.ArrayLike, positives: npt.ArrayLike) -> float | None:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties half.

    The Mann-Whitney statistic, counted in integers and divided once, so equal rankings give equal bits.

    Args:
        scores: (n,), higher means more likely positive; infinities are allowed.
        positives: (n,) of 0/1 or bool.

    Returns:
        The area, or None when there is no pair (no positives, or no negatives, or nothing at all).

    Raises:
        ValueError: shapes differ, a score is NaN, or `positives` holds anything but 0 and 1.
    """
    positive_counts, negative_counts, _ = _counts_by_score(scores, positives)
    pairs = int(positive_counts.sum()) * int(negative_counts.sum())
    if pairs == 0:
        return None
    negatives_below = np.cumsum(negative_counts) - negative_counts
    twice_won = int((positive_counts * (2 * negatives_below + negative_counts)).sum())
    return twice_won / (2 * pairs)


def roc_curve(scores: npt.ArrayLike, positives: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The ROC curve, one point a distinct score, from (0, 0) to (1, 1).

    Returns:
        False positive rates, true positive rates and thresholds, each (distinct scores + 1,): an image
        is called positive when its score is at least the threshold; the first threshold is infinite.

    Raises:
        ValueError: as `roc_auc`, or one of the two classes is absent, so that there is no curve.
    """
    positive_counts, negative_counts, distinct = _counts_by_score(scores, positives)
    if not positive_counts.any() or not negative_counts.any():
        raise ValueError("A ROC curve needs at least one positive and one negative.")
    thresholds = np.concatenate([[np.inf], distinct[::-1]])
    return _rates_from_above(negative_counts), _rates_from_above(positive_counts), thresholds


def accuracy(decisions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Share of right decisions; for (n, classes) multi-label decisions, the mean over images and labels.

    Raises:
        ValueError: shapes differ, or there are no images.
    """
    decided, truth = _checked_decisions(decisions, labels)
    return float(np.mean(decided == truth))


def balanced_accuracy(decisions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean recall over the classes present; for (n, classes) multi-label decisions, its mean over labels.

    Raises:
        ValueError: shapes differ, or there are no images.
    """
    decided, truth = _checked_decisions(decisions, labels)
    columns = [(decided, truth)] if truth.ndim == 1 else list(zip(decided.T, truth.T, strict=True))
    return float(np.mean([_mean_recall(column, true_column) for column, true_column in columns]))


def confusion_matrix(decisions: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int) -> Ints:
    """Counts (num_classes, num_classes): row = true class, column = decided class.

    Raises:
        ValueError: shapes differ, there are no images, labels are not (n,), or one is out of range.
    """
    decided, truth = _checked_decisions(decisions, labels)
    if truth.ndim != 1:
        raise ValueError("A confusion matrix needs one class an image; multi-label decisions have none.")
    if min(decided.min(), truth.min()) < 0 or max(decided.max(), truth.max()) >= num_classes:
        raise ValueError(f"Classes must lie between 0 and {num_classes - 1}.")
    cells = np.bincount(truth * num_classes + decided, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def one_vs_rest_scores(logits: npt.ArrayLike, task: str) -> Floats:
    """Each class's score against the rest, (n, k), whose order within a column gives its ROC curve.

    Binary and multi-class: the log-odds of the softmax probability, computed from the logits so that
    confident images do not tie (for two classes, the logit difference). Multi-label: the logits. A
    binary student with one output (n, 1) gives the scores of its positive class alone.

    Raises:
        ValueError: the logits are not a finite (n, k) array, or the task is unknown or does not fit k.
    """
    values = _checked_logits(logits, task)
    if task == "multi-label" or (task == "binary" and values.shape[1] == 1):
        return values
    return np.stack([_log_odds(values, column) for column in range(values.shape[1])], axis=1)


def class_aucs(logits: npt.ArrayLike, labels: npt.ArrayLike, task: str) -> list[float | None]:
    """AUC of each class against the rest, in label order; None where a class or its rest is absent.

    Args:
        logits: (n, k); of probabilities, pass the logarithm.
        labels: (n,) class indices, or (n, k) of 0/1 for the multi-label task.
        task: one of `fedward.common.datasets.TASKS`.

    Raises:
        ValueError: as `one_vs_rest_scores`, or the labels do not fit the logits.
    """
    scores = one_vs_rest_scores(logits, task)
    members = class_members(labels, task, scores)
    return [roc_auc(scores[:, c], members[:, c]) for c in range(scores.shape[1])]


def macro_auc(logits: npt.ArrayLike, labels: npt.ArrayLike, task: str) -> float | None:
    """AUC of the positive class (binary), or the mean AUC over classes or labels that have one.

    Arguments and refusals as `class_aucs`.

    Returns:
        The AUC, or None when it is undefined: no images, or images of one class only.
    """
    aucs = class_aucs(logits, labels, task)
    if task == "binary":
        return aucs[-1]
    defined = [auc for auc in aucs if auc is not None]
    return float(np.mean(defined)) if defined else None


def class_members(labels: npt.ArrayLike, task: str, scores: Floats) -> npt.NDArray[np.bool_]:
    """Which image belongs to which column of `scores`: bool (n, k).

    Raises:
        ValueError: the labels do not fit the scores' shape, or are out of range.
    """
    truth = np.asarray(labels)
    images, columns = scores.shape
    if task == "multi-label":
        if truth.shape != scores.shape or not np.isin(truth, (0, 1)).all():
            raise ValueError(f"Multi-label labels must be 0/1 of shape {scores.shape}, not {truth.shape}.")
        return truth.astype(bool)
    classes = 2 if task == "binary" else columns
    if truth.shape != (images,) or not np.isin(truth, np.arange(classes)).all():
        raise ValueError(f"Labels must be {images} classes between 0 and {classes - 1}.")
    names = np.array([1]) if columns == 1 else np.arange(columns)
    return np.asarray(truth[:, None] == names[None, :], dtype=np.bool_)


def hanley_mcneil_standard_error(auc: float, num_positives: int, num_negatives: int) -> float:
    """Standard error of an AUC from its value and the two class sizes (Hanley & McNeil, Radiology 1982).

    An exact 0 or 1 gives 0: the formula cannot tell how lucky a perfect order was.

    Raises:
        ValueError: the AUC is outside [0, 1], or a class is empty.
    """
    if not 0 <= auc <= 1:
        raise ValueError(f"An AUC lies between 0 and 1, not at {auc}.")
    if num_positives < 1 or num_negatives < 1:
        raise ValueError("The standard error of an AUC needs at least one positive and one negative.")
    two_positives = auc / (2 - auc)  # P(two random positives both outrank one negative)
    two_negatives = 2 * auc**2 / (1 + auc)  # P(one positive outranks two random negatives)
    variance = auc * (1 - auc)
    variance += (num_positives - 1) * (two_positives - auc**2)
    variance += (num_negatives - 1) * (two_negatives - auc**2)
    return math.sqrt(max(variance, 0.0) / (num_positives * num_negatives))


def macro_auc_standard_error(logits: npt.ArrayLike, labels: npt.ArrayLike, task: str) -> float | None:
    """Standard error of `macro_auc`; for a macro average an upper bound, None where the AUC is undefined.

    The classes of one test split are correlated in a way that Hanley & McNeil do not give; the standard
    error of a mean is at most the mean of the standard errors, whatever the correlation.
    """
    scores = one_vs_rest_scores(logits, task)
    members = class_members(labels, task, scores)
    first = members.shape[1] - 1 if task == "binary" else 0
    errors = [_column_error(scores[:, c], members[:, c]) for c in range(first, members.shape[1])]
    defined = [error for error in errors if error is not None]
    return float(np.mean(defined)) if defined else None


def evaluate(
    logits: npt.ArrayLike, labels: npt.ArrayLike, task: str, decisions: npt.ArrayLike
) -> dict[str, float | None]:
    """The three figures of every table: ``auc`` (None when undefined), ``accuracy``, ``balanced_accuracy``.

    Args:
        logits: (n, k).
        labels: (n,) class indices, or (n, k) of 0/1 for the multi-label task.
        task: one of `fedward.common.datasets.TASKS`.
        decisions: as labels, decided by the release's own rule.

    Raises:
        ValueError: no images, a value that is not finite, or shapes that do not fit.
    """
    return {
        "auc": macro_auc(logits, labels, task),
        "accuracy": accuracy(decisions, labels),
        "balanced_accuracy": balanced_accuracy(decisions, labels),
    }


def _counts_by_score(scores: npt.ArrayLike, positives: npt.ArrayLike) -> tuple[Ints, Ints, Floats]:
    """Positives and negatives at each distinct score, and the distinct scores, ascending."""
    values, members = np.asarray(scores, dtype=np.float64), np.asarray(positives)
    if values.ndim != 1 or members.shape != values.shape:
        raise ValueError(f"Scores and labels must be (n,) alike, not {values.shape} and {members.shape}.")
    if np.isnan(values).any():
        raise ValueError("A score is not a number (NaN), so the images cannot be ordered.")
    if not np.isin(members, (0, 1)).all():
        raise ValueError("Positives must be given as 0 and 1.")
    distinct, position = np.unique(values, return_inverse=True)
    positive_counts = np.bincount(position[members == 1], minlength=len(distinct))
    negative_counts = np.bincount(position[members == 0], minlength=len(distinct))
    return positive_counts.astype(np.int64), negative_counts.astype(np.int64), distinct


def _rates_from_above(counts: Ints) -> Floats:
    """Share of a class at or above each distinct score, from the highest score down, starting at 0."""
    running = np.concatenate([[0], np.cumsum(counts[::-1])])
    return np.asarray(running / running[-1], dtype=np.float64)


def _log_odds(logits: Floats, column: int) -> Floats:
    """Logit of one column's softmax probability, (n,)."""
    others = np.delete(logits, column, axis=1)
    highest = others.max(axis=1)
    rest = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1))
    return np.asarray(logits[:, column] - rest, dtype=np.float64)


def _mean_recall(decided: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    return float(np.mean([np.mean(decided[truth == value] == value) for value in np.unique(truth)]))


def _column_error(scores: Floats, members: npt.NDArray[np.bool_]) -> float | None:
    auc, positives = roc_auc(scores, members), int(members.sum())
    return None if auc is None else hanley_mcneil_standard_error(auc, positives, len(members) - positives)


def _checked_logits(logits: npt.ArrayLike, task: str) -> Floats:
    values = np.asarray(logits, dtype=np.float64)
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; there are {', '.join(TASKS)}.")
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"Logits must be a finite (n, classes) array; got shape {values.shape}.")
    smallest, largest = {"binary": (1, 2), "multi-class": (2, None), "multi-label": (1, None)}[task]
    if values.shape[1] < smallest or (largest is not None and values.shape[1] > largest):
        raise ValueError(f"A {task} task does not have {values.shape[1]} outputs.")
    return values


def _checked_decisions(
    decisions: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    decided, truth = np.asarray(decisions), np.asarray(labels)
    if decided.shape != truth.shape or truth.ndim not in (1, 2):
        raise ValueError(f"Decisions {decided.shape} and labels {truth.shape} must have one shape.")
    if truth.size == 0:
        raise ValueError("There are no images to measure.")
    if not all(np.issubdtype(a.dtype, np.integer) or a.dtype == np.bool_ for a in (decided, truth)):
        raise ValueError("Decisions and labels must be whole numbers.")
    return decided, truth
