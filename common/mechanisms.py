"""The mechanisms that spend privacy, as data: what every ledger entry holds and every accountant reads.

No torch: a ledger can be read without it. `fedward.common.privacy` says what they cost.
"""

import math
import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fedward.common.errors import SettingRefused

MOST_STEPS = 1_000_000_000


@dataclass(frozen=True, order=True)
class Mechanism:
    """`steps` Gaussian mechanisms of sensitivity 1, each on its own Poisson sample.

    Attributes:
        noise_multiplier: the noise's standard deviation over the sensitivity; positive.
        sample_rate: the public probability with which each privacy unit takes part in a step, in (0, 1].
            It is stated, never read off a data loader: 64 units and an expected batch of 60 are 0.9375.
        steps: how many; 0 is allowed and costs nothing.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            SettingRefused: a value is out of range or no number.
        """
        sigma = number("noise multiplier", self.noise_multiplier)
        rate = number("sample rate", self.sample_rate)
        if not 0 < sigma < math.inf:
            raise SettingRefused(f"The noise multiplier must be positive and finite, not {sigma}.")
        if not 0 < rate <= 1:
            raise SettingRefused(f"The sample rate must lie in (0, 1], not {rate}.")
        for field, value in (
            ("noise_multiplier", sigma),
            ("sample_rate", rate),
            ("steps", _step_count(self.steps)),
        ):
            object.__setattr__(self, field, value)


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """The same spending with equal (noise_multiplier, sample_rate) added up, sorted, no empty entries."""
    steps: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        steps[mechanism.noise_multiplier, mechanism.sample_rate] += mechanism.steps
    return tuple(sorted(Mechanism(*key, count) for key, count in steps.items() if count))


def number(what: str, value: object) -> float:
    """`value` as a float; a string, a truth value or an array is none."""
    if isinstance(value, (bool, np.bool_, str)):
        raise SettingRefused(f"The {what} must be a number, not {value!r}.")
    try:
        return float(value)  # type: ignore[arg-type]  # whatever is no number raises
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingRefused(f"The {what} must be a number, not {type(value).__name__}.") from error


def _step_count(value: object) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise SettingRefused(f"The number of steps must be a whole number, not {value}.")
    try:
        count = operator.index(value)  # type: ignore[arg-type]  # whatever is no integer raises
    except TypeError as error:
        raise SettingRefused(f"The number of steps must be a whole number, not {value!r}.") from error
    if not 0 <= count <= MOST_STEPS:
        raise SettingRefused(f"The number of steps must lie between 0 and {MOST_STEPS}, not {count}.")
    return count


def checked_delta(delta: float) -> float:
    """`delta`, if it lies in (0, 1); else SettingRefused."""
    value = number("delta", delta)
    if not 0 < value < 1:
        raise SettingRefused(f"Delta must lie between 0 and 1, both excluded, not {value}.")
    return value
