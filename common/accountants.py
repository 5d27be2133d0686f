"""Upper bounds on epsilon for a merged history of mechanisms, by three independent methods.

`fedward.common.privacy` says which is used when, and gives the papers.
"""

import math
import warnings
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from opacus.accountants import PRVAccountant
from scipy.special import gammaln, log_ndtr, logsumexp, ndtr

from fedward.common.errors import SettingRefused
from fedward.common.mechanisms import Mechanism

Floats = npt.NDArray[np.float64]
History = tuple[Mechanism, ...]

# Tried in turn: a tight error first, a looser one where its grid would not fit.
_PRV_ERRORS = (0.001, 0.01, 0.1)
_PRV_POINTS = 2_000_000
# Below, the rounding of an FFT over that many points is no longer small against delta / 1000.
_PRV_SMALLEST_DELTA = 1e-9
# Beyond, no hospital's policy would accept the history, and PRV's grid would only grow.
_PRV_LARGEST_EPSILON = 50.0
_WHOLE_ORDERS = np.array([*range(1, 65), 80, 96, 128, 192, 256, 384, 512, 1024], dtype=np.float64)
_ORDERS = np.unique(np.concatenate([np.linspace(1.01, 12, 500), _WHOLE_ORDERS[1:]]))


@lru_cache(maxsize=4096)
def _log_moments(noise: float, rate: float) -> Floats:
    """(orders,): (order - 1) times one step's Renyi divergence, an upper bound at every order.

    Between whole orders the value is interpolated: the function is a cumulant, hence convex, so a chord
    lies above it.
    """
    with np.errstate(over="ignore", divide="ignore"):
        exponent = np.float64(0.5) / np.float64(noise) ** 2
    unsampled: Floats = np.asarray(_ORDERS * (_ORDERS - 1) * exponent)
    if rate == 1:
        return unsampled
    whole = [_whole_log_moment(exponent, rate, int(order)) for order in _WHOLE_ORDERS]
    # Sampling never adds to the divergence, and near rate 1 says less than the chord does.
    sampled: Floats = np.minimum(unsampled, np.interp(_ORDERS, _WHOLE_ORDERS, np.array(whole)))
    return sampled


def _whole_log_moment(exponent: np.float64, rate: float, order: int) -> float:
    """Log of the order-th moment of the density ratio for a whole order: a binomial sum, exact."""
    i = np.arange(order + 1)
    choose = gammaln(order + 1) - gammaln(i + 1) - gammaln(order - i + 1)
    if not math.isfinite(exponent):
        return 0.0 if order == 1 else math.inf
    terms = choose + i * math.log(rate) + (order - i) * math.log1p(-rate) + i * (i - 1) * exponent
    return max(0.0, float(logsumexp(terms)))


@lru_cache(maxsize=4096)
def rdp_epsilon(history: History, delta: float) -> float:
    """By Renyi DP: the best bound over the orders; infinite where no order has one."""
    moments = sum((m.steps * _log_moments(m.noise_multiplier, m.sample_rate) for m in history), np.float64(0))
    bounds = (moments - math.log(delta) - np.log(_ORDERS)) / (_ORDERS - 1) + np.log1p(-1 / _ORDERS)
    return max(0.0, float(np.min(bounds)))


@lru_cache(maxsize=4096)
def prv_epsilon(history: History, delta: float) -> float:
    """By PRV, or by RDP where that says no more than RDP does."""
    bound = rdp_epsilon(history, delta)
    if delta < _PRV_SMALLEST_DELTA or bound > _PRV_LARGEST_EPSILON:
        return bound
    for error in _PRV_ERRORS:
        if _prv_points(history, delta, error) <= _PRV_POINTS:
            return max(0.0, min(bound, _opacus_prv(history, delta, error)))
    return bound


def _prv_points(history: History, delta: float, error: float) -> float:
    """About how many points PRV's grid would have: width by RDP over mesh (Gopi et al., remark 5.6)."""
    delta_error, steps = delta / 1000, sum(m.steps for m in history)
    single = (
        rdp_epsilon((Mechanism(m.noise_multiplier, m.sample_rate, 1),), delta_error / (8 * steps))
        for m in history
    )
    width = 2 * (max(rdp_epsilon(history, delta_error / 4), *single) + 3)
    return width * math.sqrt(steps * math.log(12 / delta_error) / 2) / error


def _opacus_prv(history: History, delta: float, error: float) -> float:
    """Opacus' upper end of PRV's interval; infinite where its numerics give up."""
    accountant = PRVAccountant()
    accountant.history = [(m.noise_multiplier, m.sample_rate, m.steps) for m in history]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # It warns where a logarithm of 0 stands for "no mass here" and about RDP's range of orders.
            warnings.simplefilter("ignore")
            upper = float(accountant.get_epsilon(delta, eps_error=error, delta_error=delta / 1000))
    except (ArithmeticError, RuntimeError, ValueError, MemoryError):
        return math.inf
    return math.inf if math.isnan(upper) else upper


def gaussian_epsilon(history: History, delta: float) -> float:
    """Exact: composing adds up 1 / noise**2, and delta falls in epsilon (Balle and Wang 2018, theorem 8)."""
    if any(m.sample_rate != 1 for m in history):
        raise SettingRefused("The gaussian accountant holds at sample rate 1 only: use prv.")
    mu = math.sqrt(sum(m.steps * (1 / m.noise_multiplier) * (1 / m.noise_multiplier) for m in history))
    if mu == 0 or mu == math.inf:
        return mu
    low, high = 0.0, 1.0
    while _gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(mu, middle) > delta else (low, middle)
    return high if _gaussian_delta(mu, 0.0) > delta else 0.0


def _gaussian_delta(mu: float, eps: float) -> float:
    return float(ndtr(mu / 2 - eps / mu) - np.exp(eps + log_ndtr(-mu / 2 - eps / mu)))
