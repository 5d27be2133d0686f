"""What was spent: (epsilon, delta) of a history of Poisson-subsampled Gaussian mechanisms.

Adjacency is add or remove of one privacy unit; sensitivity is 1, so the noise multiplier is the noise's
standard deviation over the clip. Every figure is an upper bound, never an estimate:

- ``prv``: Gopi, Lee, Wutschitz 2021 (Numerical Composition of Differential Privacy), by Opacus, with the
  error terms added. The figure that Fedward reports and charges.
- ``rdp``: Mironov, Talwar, Zhang 2019 (Renyi DP of the Sampled Gaussian Mechanism) with the conversion of
  Balle et al. 2020, theorem 21. Microseconds; up to a fifth larger.
- ``gaussian``: Balle and Wang 2018, exact, for histories without subsampling only. A cross-check.

PRV's own error was measured at 0.001 in epsilon and costs 0.02 to 0.25 s a history on one core, so it is
computed that finely wherever its grid stays small. Where PRV cannot say more than RDP (an epsilon below
its error, a delta near the floating-point floor, a grid too large for memory) the smaller of the
two bounds stands: both hold, so their minimum does.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from fedward.common.accountants import History, gaussian_epsilon, prv_epsilon, rdp_epsilon
from fedward.common.errors import SettingRefused
from fedward.common.mechanisms import MOST_STEPS, Mechanism, checked_delta, merged, number

__all__ = [
    "Accountant",
    "Mechanism",
    "affordable_steps",
    "epsilon",
    "merged",
    "noise_multiplier",
    "within",
]

Accountant = Literal["prv", "rdp", "gaussian"]

_ACCOUNTANTS: dict[str, Callable[[History, float], float]] = {
    "prv": prv_epsilon,
    "rdp": rdp_epsilon,
    "gaussian": gaussian_epsilon,
}
_MOST_AFFORDABLE = 1_000_000


def epsilon(mechanisms: Iterable[Mechanism], delta: float, accountant: Accountant = "prv") -> float:
    """Upper bound on the epsilon at `delta` of all `mechanisms` together, in any order.

    Args:
        mechanisms: the history; an empty one costs 0.
        delta: in (0, 1).
        accountant: see the module's docstring. ``gaussian`` needs every sample rate to be 1.

    Returns:
        epsilon >= 0; infinite where nothing can be said.

    Raises:
        SettingRefused: delta out of range, an accountant that does not exist or does not apply.
    """
    history = merged(mechanisms)
    checked = checked_delta(delta)
    if accountant not in _ACCOUNTANTS:
        raise SettingRefused(f"There is no accountant {accountant!r}; there are {', '.join(_ACCOUNTANTS)}.")
    return _ACCOUNTANTS[accountant](history, checked) if history else 0.0


def within(mechanisms: Iterable[Mechanism], delta: float, budget: float) -> bool:
    """Whether `epsilon` by PRV is at most `budget`; asks PRV only where RDP does not settle it."""
    history = merged(mechanisms)
    return epsilon(history, delta, "rdp") <= budget or epsilon(history, delta) <= budget


def noise_multiplier(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, spent: Sequence[Mechanism] = ()
) -> float:
    """The smallest noise, to four significant digits, with which `steps` more stay within the target.

    Args:
        target_epsilon: what `spent` and the new steps may cost together, by PRV.
        delta: in (0, 1).
        sample_rate: of the new steps.
        steps: at least 1.
        spent: what the same data have already cost.

    Returns:
        A noise multiplier whose epsilon is at most the target: the search ends on a value that was checked.

    Raises:
        SettingRefused: the target is spent already, or cannot be reached with any useful noise.
    """
    target = _target(target_epsilon)
    if steps < 1:
        raise SettingRefused(f"Noise is planned for at least one step, not {steps}.")
    if (already := epsilon(spent, delta)) >= target:
        raise SettingRefused(
            f"Epsilon {already:.3f} of {target:g} is spent already at delta {delta:g}: "
            "no noise leaves room for another step."
        )

    def enough(index: int, accountant: Accountant = "prv") -> bool:
        new = Mechanism(_grid(index), sample_rate, steps)
        return epsilon([*spent, new], delta, accountant) <= target

    lowest, highest = _grid_index(1e-2), _grid_index(1e6)
    if not enough(highest):
        raise SettingRefused(
            f"Epsilon {target:g} at delta {delta:g} cannot be met over {steps} steps at sample rate "
            f"{sample_rate:g}, not even with a noise multiplier of {_grid(highest):g}: "
            "raise epsilon or take fewer steps."
        )
    # RDP never says less than PRV, so what satisfies it bounds the search from above.
    upper = _first(lambda index: enough(index, "rdp"), lowest, highest)
    return _grid(_first(enough, _last_failing(enough, lowest, upper), upper))


def affordable_steps(
    spent: Sequence[Mechanism], per_step: Mechanism, budget_epsilon: float, delta: float
) -> int:
    """How often `per_step` can still be run after `spent` with all of it at most `budget_epsilon` by PRV.

    Returns:
        A count of at least 0, and at most a million.

    Raises:
        SettingRefused: `per_step` has no steps, or a range is left.
    """
    budget = _target(budget_epsilon)
    if per_step.steps < 1:
        raise SettingRefused("A mechanism without steps can be repeated without end: name one that has some.")

    def passed(count: int, accountant: Accountant = "prv") -> bool:
        new = Mechanism(per_step.noise_multiplier, per_step.sample_rate, per_step.steps * count)
        return epsilon([*spent, new], delta, accountant) > budget

    if passed(0):
        return 0
    most = min(_MOST_AFFORDABLE, MOST_STEPS // per_step.steps)
    low = max(_first(lambda count: passed(count, "rdp"), 0, most) - 1, 0)
    high, stride = low + 1, max(1, low // 8)
    while high < most and not passed(high):
        low, high, stride = high, min(most, high + stride), stride * 2
    return high if not passed(high) else _first(passed, low, high) - 1


def _target(target: float) -> float:
    value = number("epsilon", target)
    if not 0 < value < math.inf:
        raise SettingRefused(f"The epsilon aimed at must be positive and finite, not {value}.")
    return value


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest index in (low, high] at which `holds`, which fails at low and, once true, stays so."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _last_failing(holds: Callable[[int], bool], lowest: int, upper: int) -> int:
    """An index below `upper` at which `holds` fails, found by ever longer strides; `lowest` at the least."""
    stride = 256
    while upper - stride > lowest and holds(upper - stride):
        stride *= 2
    return max(lowest, upper - stride)


def _grid(index: int) -> float:
    """The index-th number of four significant digits; 0 is 1.000. Neighbours differ by 1e-4 to 1e-3."""
    exponent, digits = divmod(index, 9000)
    return float(f"{1000 + digits}e{exponent - 3}")


def _grid_index(power_of_ten: float) -> int:
    return 9000 * round(math.log10(power_of_ten))
