"""Probabilities are probabilities, and a class is decided as the manifest's rule says."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedward.common.decision import decide, probabilities

LOGITS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=5),
    elements=st.floats(-1e3, 1e3, width=32),
)


@given(LOGITS, st.none() | st.floats(0.05, 20))
def test_a_softmax_sums_to_one_and_keeps_the_order(
    logits: npt.NDArray[np.float32], temperature: float | None
) -> None:
    shares = probabilities(logits, "multi-class", temperature)
    assert np.allclose(shares.sum(axis=1), 1)
    best = np.take_along_axis(shares, decide(logits, "multi-class")[:, None], axis=1)[:, 0]
    assert (best == shares.max(axis=1)).all()


@given(LOGITS)
def test_a_sigmoid_is_half_at_zero_and_symmetric(logits: npt.NDArray[np.float32]) -> None:
    shares = probabilities(logits, "multi-label")
    assert np.allclose(shares + probabilities(-logits, "multi-label"), 1)
    assert (shares[logits > 1e-3] > 0.5).all()
    assert (shares[logits < -1e-3] < 0.5).all()


def test_probabilities_worked_by_hand() -> None:
    logits = np.log(np.array([[1.0, 3.0]]))
    assert np.allclose(probabilities(logits, "binary"), [[0.25, 0.75]])
    assert np.allclose(probabilities(2 * logits, "binary", temperature=2.0), [[0.25, 0.75]])
    assert np.allclose(probabilities(logits, "multi-label"), [[0.5, 0.75]])


@pytest.mark.parametrize(
    ("task", "thresholds", "expected"),
    [
        ("binary", [], [1, 0, 0]),
        ("binary", [0.0], [1, 0, 0]),
        ("binary", [2.0], [0, 0, 0]),
        ("binary", [-0.5], [1, 0, 1]),
        ("multi-class", [0.0, 0.0], [1, 0, 0]),
        ("multi-class", [0.0, 3.0], [0, 0, 0]),
        ("multi-class", [1.0, 0.0], [1, 0, 1]),
        ("multi-label", [0.0, 0.0], [[0, 1], [1, 0], [0, 0]]),
        ("multi-label", [-2.0, 2.0], [[1, 0], [1, 0], [1, 0]]),
    ],
)
def test_decisions_worked_by_hand(task: str, thresholds: list[float], expected: object) -> None:
    logits = np.array([[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]], dtype=np.float32)
    decided = decide(logits, task, thresholds)
    assert decided.dtype == np.int64
    assert decided.tolist() == expected


def test_no_images_are_no_decisions() -> None:
    none = np.empty((0, 2), dtype=np.float32)
    for task in ("binary", "multi-class", "multi-label"):
        assert len(decide(none, task)) == len(probabilities(none, task)) == 0
