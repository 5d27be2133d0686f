"""Probes (a) and (b) of the measurement behind the last round: what one unit moves, and the noise on it.

All goes through `fedward.client.measuring.measure`, the function that a hospital calls. With a noise
multiplier of 1e-9 the noise rounds to nothing, so what is released is the exact sum; without records it is
the noise alone.
"""

import math
from collections.abc import Iterator

import numpy as np

from fedward.client.measuring import measure
from fedward.common.config import LocalSettings
from fedward.common.measurement import FISHER, FISHER_GRID, METRIC, cells_of
from fedward.simulations.audit_sensitivity import adjacent_pairs
from fedward.simulations.audit_step import (
    Check,
    Floats,
    audit_settings,
    join,
    keyed,
    no_records,
    phantoms,
    start,
)

NAMES = {METRIC: "counts", FISHER: "Fisher"}
_CLIP, _DECLARED, _KEYS = 0.5, 200, 24
_NOISELESS, _SIGMA = 1e-9, 4.0
_MODELS = {"default": 1.0, "a model of huge gradients": 1e10, "a model that overflows": 1e45}
_FACTORS = 6.0  # deviations of a variance's estimate: a false alarm in a billion


def _asking(**sigmas: float) -> LocalSettings:
    """Settings that ask for the kinds in `sigmas`, each under its noise multiplier."""
    return audit_settings(
        noise_multiplier=1.0,
        max_grad_norm=_CLIP,
        **{f"{kind}_noise_multiplier": sigma for kind, sigma in sigmas.items()},
    )


def bounds(settings: LocalSettings) -> dict[str, float]:
    """What one unit may move, in the released whole numbers: of the docs, not of the code under audit."""
    return {METRIC: math.sqrt(cells_of(settings).a_record), FISHER: 1.0 / FISHER_GRID}


def measured_sensitivity(seed: int) -> Iterator[Check]:
    """The worst pair of each model, in units of the stated sensitivity."""
    settings = _asking(**dict.fromkeys(NAMES, _NOISELESS))
    for name, times in _MODELS.items():
        moved = _moved(settings, seed, times)
        for kind, what in NAMES.items():
            yield Check(f"{what} moved by one unit, in sensitivities, {name}", moved[kind], high=1.0 + 1e-9)


def _moved(settings: LocalSettings, seed: int, times: float) -> dict[str, float]:
    latents, worst = start(settings, seed, times), dict.fromkeys(NAMES, 0.0)
    for pair in adjacent_pairs(seed):
        sums = [
            measure(settings, latents, records, _DECLARED, keyed(seed, "measurement"))
            for records in (pair.records, join(pair.records, pair.unit))
        ]
        for kind, bound in bounds(settings).items():
            moved = float(np.linalg.norm((sums[1][kind] - sums[0][kind]).astype(np.float64)))
            worst[kind] = max(worst[kind], moved / bound)
    return worst


def measured_noise(seed: int) -> Iterator[Check]:
    """The noise's variance over the stated one, and that neither part nor key shares its noise."""
    drawn = {kind: _noise(kind, seed) for kind in NAMES}
    for kind, what in NAMES.items():
        values = drawn[kind]
        ratio, wide = float((values**2).mean()), _FACTORS * math.sqrt(2.0 / values.size)
        yield Check(f"variance of the noise on the {what}, over the stated", ratio, 1.0 - wide, 1.0 + wide)
        repeated = len(values) - len(np.unique(values, axis=0))
        yield Check(f"keys with the same noise on the {what}", repeated, high=0)
    count = min(values.shape[1] for values in drawn.values())
    shared = np.abs(drawn[METRIC][:, :count] - drawn[FISHER][:, :count]).mean()
    yield Check("difference between the noise on counts and Fisher", float(shared), low=0.5)


def _noise(kind: str, seed: int) -> Floats:
    """(keys, numbers) in stated deviations."""
    settings = _asking(**{kind: _SIGMA})
    latents, none = start(settings, seed), no_records(phantoms(2, seed).train)
    rows = [
        measure(settings, latents, none, _DECLARED, keyed(seed, "noise", number))[kind]
        for number in range(_KEYS)
    ]
    return np.asarray(rows, np.float64) / (_SIGMA * bounds(settings)[kind])
