"""Figures that a hospital will be shown: exact, and refused where they mean nothing."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedward.common.metrics import (
    accuracy,
    balanced_accuracy,
    class_aucs,
    confusion_matrix,
    evaluate,
    hanley_mcneil_standard_error,
    macro_auc,
    macro_auc_standard_error,
    one_vs_rest_scores,
    roc_auc,
    roc_curve,
)

# Few distinct scores, so that ties are the rule.
MODERATE = st.floats(-20, 20, width=32)
Scored = list[tuple[int, bool]]
SCORED = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), max_size=30)


def _columns(scored: Scored) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    return np.array([s for s, _ in scored], dtype=np.float64), np.array([p for _, p in scored], dtype=bool)


def _pairs_won(scores: Any, positives: Any) -> float | None:
    """The definition, pair by pair."""
    pairs = [(p, n) for p in scores[positives] for n in scores[~positives]]
    won = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs)
    return won / len(pairs) if pairs else None


@given(SCORED)
def test_auc_is_the_share_of_pairs_in_the_right_order(scored: Scored) -> None:
    scores, positives = _columns(scored)
    expected = _pairs_won(scores, positives)
    assert roc_auc(scores, positives) == (None if expected is None else pytest.approx(expected, abs=1e-15))


@given(SCORED)
def test_auc_does_not_change_under_a_monotone_map(scored: Scored) -> None:
    scores, positives = _columns(scored)
    assert roc_auc(np.exp(scores) * 3 - 7, positives) == roc_auc(scores, positives)


@given(SCORED)
def test_swapping_the_classes_or_the_sign_gives_the_complement(scored: Scored) -> None:
    scores, positives = _columns(scored)
    auc = roc_auc(scores, positives)
    for mirrored in (roc_auc(-scores, positives), roc_auc(scores, ~positives)):
        assert mirrored is None if auc is None else mirrored == pytest.approx(1 - auc, abs=1e-15)


@given(SCORED)
def test_the_area_below_the_curve_is_the_auc(scored: Scored) -> None:
    scores, positives = _columns(scored)
    if positives.all() or not positives.any():
        with pytest.raises(ValueError, match="positive and one negative"):
            roc_curve(scores, positives)
        return
    false_alarms, found, thresholds = roc_curve(scores, positives)
    assert np.trapezoid(found, false_alarms) == pytest.approx(roc_auc(scores, positives))
    assert (false_alarms[0], found[0], false_alarms[-1], found[-1]) == (0, 0, 1, 1)
    for x, y, threshold in zip(false_alarms, found, thresholds, strict=True):
        assert x == pytest.approx(np.mean(scores[~positives] >= threshold))
        assert y == pytest.approx(np.mean(scores[positives] >= threshold))


def test_auc_by_hand() -> None:
    assert roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert roc_auc([1, 1, 1], [0, 1, 1]) == 0.5
    assert roc_auc([-np.inf, np.inf], [0, 1]) == 1.0


@pytest.mark.parametrize("positives", [[], [1, 1], [0, 0, 0]])
def test_auc_without_both_classes_is_none(positives: Any) -> None:
    assert roc_auc(np.zeros(len(positives)), positives) is None


@pytest.mark.parametrize(
    ("scores", "positives"),
    [([np.nan, 1.0], [0, 1]), ([1.0], [0, 1]), ([[1.0, 2.0]], [[0, 1]]), ([1.0, 2.0], [0, 2])],
)
def test_auc_refuses_what_cannot_be_ordered(scores: Any, positives: Any) -> None:
    with pytest.raises(ValueError, match=r"NaN|alike|0 and 1"):
        roc_auc(scores, positives)


def test_a_large_split_does_not_overflow() -> None:
    scores, positives = np.arange(200_000), np.arange(200_000) >= 100_000
    assert roc_auc(scores, positives) == 1.0


@given(
    arrays.arrays(
        np.float32, st.tuples(st.integers(1, 20), st.integers(2, 5)), elements=st.floats(-20, 20, width=32)
    )
)
def test_one_vs_rest_scores_are_the_log_odds_of_the_softmax(logits: npt.NDArray[Any]) -> None:
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    rest = np.stack([np.delete(shares, c, axis=1).sum(axis=1) for c in range(shares.shape[1])], axis=1)
    np.testing.assert_allclose(one_vs_rest_scores(logits, "multi-class"), np.log(shares / rest), atol=1e-6)


def test_binary_auc_uses_the_logit_difference_and_confident_images_do_not_tie() -> None:
    logits = np.array([[0.0, 100.0], [0.0, 200.0], [50.0, 0.0], [0.0, 300.0]])  # softmax says 1, 1, 0, 1
    assert macro_auc(logits, [0, 1, 0, 1], "binary") == 1.0
    assert macro_auc(np.array([[5.0, 6.0], [-5.0, 0.0]]), [0, 1], "binary") == 1.0  # column 1 alone says 0
    assert macro_auc([[0.2], [0.9]], [0, 1], "binary") == 1.0


def test_multi_class_auc_averages_over_the_classes_present() -> None:
    logits = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [2.5, 0.0, 1.0]])
    labels = np.array([0, 1, 0, 1])  # class 2 is absent
    aucs = class_aucs(logits, labels, "multi-class")
    assert aucs[2] is None
    assert macro_auc(logits, labels, "multi-class") == pytest.approx(np.mean([aucs[0] or 0, aucs[1] or 0]))


def test_multi_label_auc_averages_over_labels_with_both_classes() -> None:
    logits = np.array([[0.1, 5.0, 1.0], [0.9, 4.0, 2.0]])
    labels = np.array([[0, 1, 1], [1, 1, 0]])  # label 1 is always there
    assert class_aucs(logits, labels, "multi-label") == [1.0, None, 0.0]
    assert macro_auc(logits, labels, "multi-label") == 0.5


@pytest.mark.parametrize(
    ("logits", "labels", "task"),
    [
        (np.zeros((3, 2)), [1, 1, 1], "binary"),
        (np.zeros((3, 4)), [2, 2, 2], "multi-class"),
        (np.zeros((2, 2)), [[0, 1], [0, 1]], "multi-label"),
        (np.zeros((0, 2)), [], "binary"),
    ],
)
def test_macro_auc_is_none_where_nothing_can_be_ranked(logits: Any, labels: Any, task: str) -> None:
    assert macro_auc(logits, labels, task) is None
    assert macro_auc_standard_error(logits, labels, task) is None


@pytest.mark.parametrize(
    ("logits", "labels", "task"),
    [
        (np.full((2, 2), np.nan), [0, 1], "binary"),
        (np.full((2, 2), np.inf), [0, 1], "binary"),
        (np.zeros((2, 3)), [0, 1], "binary"),
        (np.zeros((2, 1)), [0, 0], "multi-class"),
        (np.zeros(2), [0, 1], "binary"),
        (np.zeros((2, 2)), [0, 2], "binary"),
        (np.zeros((2, 3)), [0, -1], "multi-class"),
        (np.zeros((2, 3)), [0, 1, 2], "multi-class"),
        (np.zeros((2, 2)), [0, 1], "multi-label"),
        (np.zeros((2, 2)), [0, 1], "regression"),
    ],
)
def test_macro_auc_refuses_what_does_not_fit(logits: Any, labels: Any, task: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        macro_auc(logits, labels, task)


def test_accuracies_by_hand() -> None:
    labels, decisions = [0, 0, 0, 1], [0, 0, 1, 1]
    assert accuracy(decisions, labels) == 0.75
    assert balanced_accuracy(decisions, labels) == pytest.approx((2 / 3 + 1) / 2)
    several, decided = [[0, 1], [1, 1], [0, 0]], [[0, 1], [0, 1], [0, 1]]
    assert accuracy(decided, several) == pytest.approx(4 / 6)
    assert balanced_accuracy(decided, several) == pytest.approx((0.5 + 0.5) / 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_confusion_matrix_counts_every_image_once_and_gives_both_accuracies(pairs: Any) -> None:
    decisions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    counts = confusion_matrix(decisions, labels, 4)
    assert counts.sum() == len(pairs)
    assert all(counts[t, d] == pairs.count((d, t)) for t in range(4) for d in range(4))
    assert np.trace(counts) / len(pairs) == pytest.approx(accuracy(decisions, labels))
    present = counts.sum(axis=1) > 0
    recall = counts.diagonal()[present] / counts.sum(axis=1)[present]
    assert recall.mean() == pytest.approx(balanced_accuracy(decisions, labels))


@pytest.mark.parametrize("measure", [accuracy, balanced_accuracy])
@pytest.mark.parametrize(
    ("decisions", "labels"), [([], []), ([0], [0, 1]), ([0.5], [0]), ([np.nan], [0]), ([[[0]]], [[[0]]])]
)
def test_accuracies_refuse_empty_and_misfitting_decisions(measure: Any, decisions: Any, labels: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        measure(decisions, labels)


@pytest.mark.parametrize(
    ("decisions", "labels"), [([0, 2], [0, 1]), ([0, -1], [0, 1]), ([[0]], [[1]]), ([], [])]
)
def test_the_confusion_matrix_refuses_classes_out_of_range(decisions: Any, labels: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        confusion_matrix(decisions, labels, 2)


def test_the_standard_error_is_hanley_and_mcneils() -> None:
    # Their formula in its other form, which shares no line with the code.
    auc, p, n = 0.893, 51, 58
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    expected = math.sqrt((auc - p * auc**2 + (p - 1) * q1 + (n - 1) * (q2 - auc**2)) / (p * n))
    assert hanley_mcneil_standard_error(auc, p, n) == pytest.approx(expected)
    assert hanley_mcneil_standard_error(0.8, 1, 1) == pytest.approx(math.sqrt(0.8 * 0.2))
    assert round(hanley_mcneil_standard_error(0.921, 390, 234), 2) == 0.01


def test_the_standard_error_agrees_with_drawing_again() -> None:
    generator = np.random.default_rng(0)
    draws: list[Any] = [
        roc_auc(np.r_[generator.exponential(3.0, 60), generator.exponential(1.0, 40)], np.arange(100) < 60)
        for _ in range(600)
    ]
    # Exponential scores are the case in which the formula is exact: AUC = 3 / (3 + 1).
    assert np.std(draws) == pytest.approx(hanley_mcneil_standard_error(0.75, 60, 40), rel=0.1)


@given(st.floats(0, 1), st.integers(1, 500), st.integers(1, 500))
def test_the_standard_error_is_finite_symmetric_and_falls_with_more_images(
    auc: float, p: int, n: int
) -> None:
    error = hanley_mcneil_standard_error(auc, p, n)
    assert 0 <= error <= 0.5
    assert error == pytest.approx(hanley_mcneil_standard_error(1 - auc, n, p), abs=1e-6)
    assert hanley_mcneil_standard_error(auc, 4 * p, 4 * n) <= error + 1e-12


@pytest.mark.parametrize(
    ("auc", "p", "n"), [(1.1, 3, 3), (-0.1, 3, 3), (math.nan, 3, 3), (0.5, 0, 3), (0.5, 3, 0)]
)
def test_the_standard_error_refuses_what_is_no_auc(auc: float, p: int, n: int) -> None:
    with pytest.raises(ValueError, match="AUC"):
        hanley_mcneil_standard_error(auc, p, n)


def test_the_error_of_a_macro_auc_is_the_mean_of_its_columns_errors() -> None:
    logits = np.array([[0.3, 2.0], [0.6, 1.0], [0.5, 0.0], [0.1, 3.0]])
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    aucs = [roc_auc(logits[:, c], labels[:, c]) for c in (0, 1)]
    assert aucs == [0.75, 0.5]
    errors = [hanley_mcneil_standard_error(auc, 2, 2) for auc in (0.75, 0.5)]
    assert macro_auc_standard_error(logits, labels, "multi-label") == pytest.approx(np.mean(errors))


def test_evaluate_gives_the_three_figures_of_the_task() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.5]])
    labels = np.array([0, 1, 1, 1])
    assert evaluate(logits, labels, "binary", logits.argmax(axis=1)) == {
        "auc": pytest.approx(2 / 3),
        "accuracy": 0.75,
        "balanced_accuracy": pytest.approx((1 + 2 / 3) / 2),
    }
    with pytest.raises(ValueError, match="no images"):
        evaluate(np.zeros((0, 2)), [], "binary", [])
