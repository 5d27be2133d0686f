"""Weighted sums that no order of arrival can change, and the screening of what may enter them."""

import math

import numpy as np

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.errors import UpdateRefused
from fedward.common.rounding import uplink_step

# The public grid: 2^-24. With |value| < 2^9 and a total weight < 2^30 the sum stays below 2^63.
_GRID_BITS = 24
_MAXIMUM_VALUE = 2.0**9
_MAXIMUM_WEIGHT = 2**30


class IntegerMean:
    """sum_k weight_k * round(update_k / grid) in int64: exact, so commutative and associative.

    Memory does not grow with the number of updates.
    """

    def __init__(self, count: int) -> None:
        """Start an empty sum of vectors of shape (count,)."""
        self._sum = np.zeros(count, np.int64)
        self.weight = 0
        self.replies = 0

    def add(self, update: Vector, weight: int) -> None:
        """Fold in one update, float32 (count,), with a positive integer weight.

        Raises:
            UpdateRefused: a value or the total weight is too large for the grid.
        """
        if not np.abs(update).max(initial=0.0) < _MAXIMUM_VALUE:
            raise UpdateRefused(f"The update holds values of {_MAXIMUM_VALUE:g} or more, or not finite ones.")
        if weight < 1 or self.weight + weight >= _MAXIMUM_WEIGHT:
            raise UpdateRefused(f"A weight of {weight} does not fit the sum; declared counts are too large.")
        self._sum += np.rint(update.astype(np.float64) * 2.0**_GRID_BITS).astype(np.int64) * weight
        self.weight += weight
        self.replies += 1

    def mean(self) -> Vector:
        """The weighted mean, float32 (count,)."""
        return (self._sum / (self.weight * 2.0**_GRID_BITS)).astype(np.float32)


def norm_bound(
    settings: LocalSettings, learning_rate: float, num_examples: int, count: int, codec: str = "fp32"
) -> float:
    """Largest L2 norm that an honest update has, but for a chance of about 1e-9, from public constants.

    A step moves the latents by lr/(q n) * (clipped sum + noise). The sum of B units' clipped gradients is at
    most B*C, with B below its binomial mean by more than six standard deviations hardly ever exceeded, and
    the noise's norm is sigma*C*chi(count) <= sigma*C*(sqrt(count) + 6.5) (Laurent & Massart 2000). A small
    site's noise is rightly large: n stands in the denominator. The last factor allows for 8-bit rounding by
    blocks; what a coded codec's public step adds is said in `_rounded`.
    """
    q, sigma, clip = settings.sample_rate, settings.noise_multiplier, settings.max_grad_norm
    drawn = min(float(num_examples), q * num_examples + 6.5 * math.sqrt(q * (1 - q) * num_examples) + 10)
    step = (drawn + sigma * (math.sqrt(count) + 6.5)) * clip / (q * num_examples)
    bound = 1.05 * learning_rate * settings.local_steps * step
    public_step = uplink_step(codec, settings, learning_rate, num_examples)
    return bound if public_step is None else _rounded(bound, public_step, count)


def _rounded(bound: float, step: float, count: int) -> float:
    """Largest norm after rounding at `step` of what had a norm of at most `bound`.

    The noise dithers (`fedward.common.rounding`), so each error is uniform over a step, of deviation
    e = step / sqrt(12), and unrelated to the value. All of them have a norm of at most e (sqrt(count) + 6.5),
    and along the update at most 6.5 e, but for a chance of about 1e-9.
    """
    error = step / math.sqrt(12)
    return math.hypot(bound + 6.5 * error, error * (math.sqrt(count) + 6.5))


def screen(update: Vector, bound: float) -> None:
    """Refuse an update that no honest site sends.

    Raises:
        UpdateRefused: NaN or infinite values, or an L2 norm above `bound`.
    """
    norm = float(np.linalg.norm(update.astype(np.float64)))
    if not math.isfinite(norm):
        raise UpdateRefused("The update holds NaN or infinite values.")
    if norm > bound:
        raise UpdateRefused(f"The update's norm is {norm:.3g}, above the {bound:.3g} that the study allows.")
