"""Probe (a): adding one unit moves the noiseless released sum by at most the clip.

The units are chosen by an adversary: mislabelled outliers, copies, the first of all, the one that opens a new
physical batch; and so is the model, whose gradients are 1e10 times too large, or overflow.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedward.client.dp_sgd import GRID
from fedward.client.ewc import ElasticPull
from fedward.client.training import PHYSICAL_ROWS
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.models import FAMILIES, build_student, unflatten
from fedward.simulations.audit_step import (
    SIDE,
    Check,
    audit_settings,
    join,
    keyed,
    no_records,
    phantoms,
    released,
    start,
    take,
)

CLIP = 0.5
DECLARED = 40
# float32 holds latents of about 1, and the sum is seen as their change times the denominator.
_FLOAT_SLACK = 1e-3
_VIEWS = 4


@dataclass(frozen=True)
class Adjacent:
    """A data set and one unit more."""

    name: str
    records: Split
    unit: Split


def _unit(value: int, label: int) -> Split:
    return Split(np.full((1, SIDE, SIDE, 1), value, np.uint8), np.array([label]))


def _relabelled(records: Split) -> Split:
    return Split(records.images, 1 - records.labels)


def adjacent_pairs(seed: int, physical: int = PHYSICAL_ROWS) -> list[Adjacent]:
    """The pairs; `physical` units fill one physical batch."""
    pool = phantoms(physical + 1, seed).train
    first, some = take(pool, slice(0, 1)), take(pool, slice(0, 32))
    noise = np.frombuffer(keyed(seed, "noise image").bytes(SIDE * SIDE), np.uint8)
    random_unit = Split(noise.reshape(1, SIDE, SIDE, 1).copy(), np.array([1]))
    return [
        Adjacent("the first unit", no_records(pool), first),
        Adjacent("the same image, other label", first, _relabelled(first)),
        Adjacent("one label, then an outlier of the other", _same_label(some), _unit(255, 1)),
        Adjacent("all-255 among 32", some, _unit(255, 0)),
        Adjacent("black among 32", some, _unit(0, 1)),
        Adjacent("noise among 32", some, random_unit),
        Adjacent("a mislabelled one of 32", some, _relabelled(first)),
        Adjacent("a copy among copies", take(pool, [0] * 32), first),
        Adjacent("opens a physical batch", take(pool, slice(0, physical)), _relabelled(first)),
    ]


def _same_label(records: Split) -> Split:
    return Split(records.images, np.zeros_like(records.labels))


def slack(count: int) -> float:
    """What rounding may add, in units of the clip: half a grid step for each of `count` values, twice."""
    return GRID * count**0.5 + _FLOAT_SLACK


def sensitivity(seed: int, families: tuple[str, ...] = FAMILIES) -> Iterator[Check]:
    """Every family's worst pair; then several views, EWC, and models of huge gradients and of none that is finite."""
    settings = audit_settings(student=f"fp32-{families[0]}", max_grad_norm=CLIP)
    yield _worst(families[0], settings, seed)
    yield _worst("EWC", settings, seed, pulled=True)
    yield _worst("a model of huge gradients", settings, seed, last_weight_times=1e10)
    yield _worst("a model that overflows", settings, seed, last_weight_times=1e30)
    yield _worst(f"{_VIEWS} views", dataclasses.replace(settings, views=_VIEWS), seed)
    for family in families[1:]:
        yield _worst(family, audit_settings(student=f"fp32-{family}", max_grad_norm=CLIP), seed)
    yield _worst("ternary", audit_settings(student=f"ternary-{families[0]}", max_grad_norm=CLIP), seed)


def _worst(
    name: str, settings: LocalSettings, seed: int, last_weight_times: float = 1.0, pulled: bool = False
) -> Check:
    pairs = adjacent_pairs(seed, max(1, PHYSICAL_ROWS // settings.views))
    latents = start(settings, seed, last_weight_times)
    pull = _pull(settings, seed) if pulled else None
    moved = [_moved(settings, pair, latents, seed, pull) for pair in pairs]
    # np.max, for max() would pass over a NaN.
    return Check(name, float(np.max(moved)), high=1.0 + slack(len(latents)))


def _moved(
    settings: LocalSettings, pair: Adjacent, latents: Tensor, seed: int, pull: ElasticPull | None
) -> float:
    """Norm of what the unit adds to the released sum, in clips; NaN where a sum is not finite."""
    sums = [
        released(settings, latents, records, keyed(seed, "sensitivity"), DECLARED, pull)
        for records in (pair.records, join(pair.records, pair.unit))
    ]
    return float(np.linalg.norm(sums[1] - sums[0])) / settings.max_grad_norm


def _pull(settings: LocalSettings, seed: int) -> ElasticPull:
    """A pull whose penalty, were it in the loss, would have a gradient of hundreds of clips."""
    like = list(build_student(settings.spec).parameters())
    anchor = unflatten(start(settings, seed) + 1.0, like)
    fisher = unflatten(start(settings, seed + 1).abs().clamp(max=1.0) + 0.5, like)
    return ElasticPull(anchor, fisher, 1.0)
