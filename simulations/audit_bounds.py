"""Lower bounds on epsilon from one run: Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846).

m canaries are each included by an independent fair coin. From the output alone the auditor guesses r of the
coins and abstains from the others. If the algorithm is (epsilon, delta)-DP, theorem 5.2 bounds the chance
of v or more right guesses:

    P[right >= v] <= P[W >= v] + 2*m*delta * max_i P[v - i <= W < v] / i,    W ~ Binomial(r, p),
    p = e^epsilon / (1 + e^epsilon),  i in 1..m

An epsilon at which this chance is below 1 - confidence is refuted. `gaussian_estimate` is no bound: it
believes that the scores are Gaussian, and is there to diagnose.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from fedward.common.errors import SettingRefused
from fedward.common.privacy import Mechanism, epsilon

CONFIDENCE = 0.95
_GRID = 0.01  # of epsilon
_LARGEST = 20.0  # beyond, one would need more than e^20 guesses

Floats = npt.NDArray[np.float64]


def chance_of(right: int, guesses: int, canaries: int, eps: float, delta: float) -> float:
    """Upper bound on the chance of `right` or more right guesses under (eps, delta)-DP.

    Raises:
        SettingRefused: not 0 <= right <= guesses <= canaries, or eps or delta out of range.
    """
    if not (0 <= right <= guesses <= canaries and eps >= 0 and 0 <= delta <= 1):
        raise SettingRefused(
            f"{right} right of {guesses} guesses about {canaries} canaries at ({eps:g}, {delta:g}) is no "
            "outcome of an audit."
        )
    masses = _binomial(guesses, eps)
    tail = float(masses[right:].sum())
    if right == 0 or delta == 0:
        return min(1.0, tail)
    short = np.cumsum(masses[:right][::-1])  # P[right - i <= W < right] for i = 1, 2, ...
    # Beyond i = right nothing is added to the sum.
    return min(1.0, tail + 2.0 * canaries * delta * float(np.max(short / np.arange(1, right + 1))))


def _binomial(trials: int, eps: float) -> Floats:
    """(trials + 1,): the chances of each count at the rate e^eps / (1 + e^eps)."""
    counts = np.arange(trials + 1)
    hit, miss = -np.logaddexp(0.0, -eps), -np.logaddexp(0.0, eps)
    chances: Floats = np.exp(_log_choose(trials) + counts * hit + (trials - counts) * miss)
    return chances


@lru_cache(maxsize=16)
def _log_choose(trials: int) -> Floats:
    counts = np.arange(trials + 1)
    logs: Floats = gammaln(trials + 1) - gammaln(counts + 1) - gammaln(trials - counts + 1)
    return logs


def epsilon_lower_bound(
    right: int, guesses: int, canaries: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon, to 0.01 and at most 20, below which all are refuted at `confidence`.

    Of an (epsilon, delta)-DP algorithm it exceeds epsilon with a chance of at most 1 - confidence: the grid
    is walked from 0 up to the first epsilon that stands, so that to exceed epsilon is to refute the grid's
    next point above it, at which the algorithm is DP as well.

    Raises:
        SettingRefused: as `chance_of`.
    """
    steps = 0
    while steps * _GRID <= _LARGEST:
        if chance_of(right, guesses, canaries, steps * _GRID, delta) >= 1.0 - confidence:
            break
        steps += 1
    return max(0, steps - 1) * _GRID


def right_guesses(scores: Floats, included: npt.NDArray[np.bool_], each: int) -> int:
    """How many are right: the `each` highest scores guessed included, the `each` lowest left out."""
    order = np.argsort(scores, kind="stable")
    return int(included[order[len(order) - each :]].sum() + (~included[order[:each]]).sum())


def gaussian_estimate(scores: Floats, included: npt.NDArray[np.bool_], delta: float) -> float:
    """Epsilon at `delta` of a Gaussian mechanism whose scores differ as these do: a diagnostic, no bound.

    The distance of the means over the standard deviation of the scores left out; Balle and Wang 2018.
    """
    inside, outside = scores[included], scores[~included]
    spread = float(outside.std())
    if spread == 0.0:
        return float("inf") if inside.mean() != outside.mean() else 0.0
    distance = max(1e-6, abs(float(inside.mean() - outside.mean())) / spread)
    return epsilon([Mechanism(1.0 / distance, 1.0, 1)], delta, "gaussian")
