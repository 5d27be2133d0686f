"""Probe (a): adding one unit moves the noiseless released sum by at most the clip.

The units are chosen by an adversary: mislabelled outliers, copies, the first of all, the one that opens a new
physical batch; and so is the model, whose gradients are 1e10 times too large, or overflow.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

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
DECLARED = 2 * PHYSICAL_ROWS
# The sum is seen through float32 latents of about 1, under EWC shrunk by its pull; the step itself accounts
# for its own rounding.
_SLACK = 2e-4
_PULL = 100.0
_SLACK_UNDER_PULL = 5e-3


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
        Adjacent("the same image, other label first", _relabelled(first), first),
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


@dataclass(frozen=True)
class _Case:
    """One setting of the step: a student, views, whether EWC pulls, and a factor on the last weight."""

    student: str
    views: int = 1
    pulled: bool = False
    last_weight_times: float = 1.0


def _cases() -> dict[str, _Case]:
    first, *others = FAMILIES
    return {
        "default": _Case(f"fp32-{first}"),
        "EWC": _Case(f"fp32-{first}", pulled=True),
        "a model of huge gradients": _Case(f"fp32-{first}", last_weight_times=1e10),
        "a model that overflows": _Case(f"fp32-{first}", last_weight_times=1e45),
        "several views": _Case(f"fp32-{first}", views=4),
        "ternary": _Case(f"ternary-{first}"),
        **{family: _Case(f"fp32-{family}") for family in others},
    }


CASES = _cases()


def sensitivity(seed: int, only: tuple[str, ...] = tuple(CASES)) -> Iterator[Check]:
    """The worst pair of each case, in clips."""
    for name in only:
        slack = _SLACK_UNDER_PULL if CASES[name].pulled else _SLACK
        yield Check(f"clips moved by one unit, {name}", _worst(CASES[name], seed), high=1.0 + slack)


def _worst(case: _Case, seed: int) -> float:
    settings = audit_settings(student=case.student, views=case.views, max_grad_norm=CLIP)
    pairs = adjacent_pairs(seed, max(1, PHYSICAL_ROWS // case.views))
    latents = start(settings, seed, case.last_weight_times)
    pull = _pull(settings, seed) if case.pulled else None
    moved = [_moved(settings, pair, latents, seed, pull) for pair in pairs]
    return float(np.max(moved))  # np.max, for max() would pass over a NaN


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
    """A pull whose penalty, were it in the loss, would have a gradient of many clips."""
    like = list(build_student(settings.spec).parameters())
    anchor = unflatten(start(settings, seed) + 1.0, like)
    fisher = unflatten(start(settings, seed + 1).abs().clamp(max=1.0) + _PULL, like)
    return ElasticPull(anchor, fisher, 1.0)
