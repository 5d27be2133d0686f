"""What a study's rounds cost each of its hospitals: from public settings alone, by PRV."""

import math

from fedward.common.config import Study
from fedward.common.measurement import measurements
from fedward.common.mechanisms import Mechanism
from fedward.common.privacy import epsilon


def spent_after(study: Study, rounds: int, is_measured: bool = False) -> float | None:
    """Epsilon after so many rounds, and after the measurement behind the last; None without privacy."""
    if study.target_epsilon is None:
        return None
    local = study.local
    history = [Mechanism(local.noise_multiplier, local.sample_rate, local.local_steps * rounds)]
    if is_measured:
        history += measurements(local).values()
    return epsilon(history, local.target_delta)


def noted_cost(study: Study, rounds: int, is_measured: bool = False) -> float | None:
    """The same for whoever watches; None also where the accountant can give no finite bound."""
    cost = spent_after(study, rounds, is_measured)
    return cost if cost is not None and math.isfinite(cost) else None
