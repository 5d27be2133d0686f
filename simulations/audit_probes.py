"""The four probes, the faults that each must catch, and one report of it all."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedward.common.errors import Refusal
from fedward.simulations import audit_faults as faults
from fedward.simulations import audit_ledger_faults as ledger_faults
from fedward.simulations import audit_measurement_faults as measurement_faults
from fedward.simulations.audit_bounds import CONFIDENCE
from fedward.simulations.audit_canaries import (
    DELTA,
    FULL,
    SAMPLED,
    canaries,
    estimate_name,
    lower_bound_name,
)
from fedward.simulations.audit_faults import Plant
from fedward.simulations.audit_ledger import ledger
from fedward.simulations.audit_measurement import measured_noise, measured_sensitivity
from fedward.simulations.audit_noise import noise
from fedward.simulations.audit_sensitivity import sensitivity
from fedward.simulations.audit_step import Check

Measure = Callable[[int], Iterator[Check]]
Row = dict[str, Any]
TARGET_SECONDS = 90.0


@dataclass(frozen=True)
class Fault:
    """A fault, and where it is looked for if not by the whole probe."""

    name: str
    plant: Plant
    measure: Measure | None = None


@dataclass(frozen=True)
class Probe:
    """One probe.

    Attributes:
        name: public.
        proves: one phrase.
        measure: its checks on whatever code runs, from a seed.
        faults: what it must catch.
    """

    name: str
    proves: str
    measure: Measure
    faults: tuple[Fault, ...]


def _both_audits(seed: int) -> Iterator[Check]:
    yield from canaries(FULL, seed)
    yield from canaries(SAMPLED, seed)


def _all_sensitivities(seed: int) -> Iterator[Check]:
    yield from sensitivity(seed)
    yield from measured_sensitivity(seed)


def _all_noise(seed: int) -> Iterator[Check]:
    yield from noise(seed)
    yield from measured_noise(seed)


def _case(name: str) -> Measure:
    return partial(sensitivity, only=(name,))


_FULL, _SAMPLED = partial(canaries, FULL), partial(canaries, SAMPLED)

PROBES = (
    Probe(
        "sensitivity",
        "one unit moves each noiseless released sum by at most its sensitivity",
        _all_sensitivities,
        (
            Fault("no clip", faults.optimizer(faults.NoClip), _case("default")),
            Fault("clip after the sum", faults.optimizer(faults.ClipAfterSum), _case("default")),
            Fault("clip layer by layer", faults.optimizer(faults.ClipByLayer), _case("default")),
            Fault("clip view by view", faults.clip_by_view, _case("several views")),
            Fault(
                "EWC's penalty multiplied by clip factors",
                faults.optimizer(faults.PenaltyInLoss),
                _case("EWC"),
            ),
            Fault("BatchNorm in the student", faults.batch_norm, _case("default")),
            Fault("BatchNorm under another name", faults.disguised_batch_norm, _case("default")),
            Fault(
                "a gradient that overflows",
                faults.optimizer(faults.OverflowPasses),
                _case("a model that overflows"),
            ),
            Fault("denominator by the draw", faults.optimizer(faults.DenominatorByDraw), _case("default")),
            Fault("a Fisher without a clip", measurement_faults.fisher_without_clip, measured_sensitivity),
            Fault("counts weighted by class", measurement_faults.weighted_counts, measured_sensitivity),
        ),
    ),
    Probe(
        "noise",
        "the released noise is Gaussian, of the stated scale, and never used twice",
        _all_noise,
        (
            Fault("half the noise", faults.optimizer(faults.HalfNoise)),
            Fault("no noise", faults.optimizer(faults.NoNoise)),
            Fault("no noise for an empty sample", faults.optimizer(faults.NoNoiseWhenEmpty)),
            Fault("noise for each physical batch", faults.optimizer(faults.NoiseByPhysicalBatch)),
            Fault("a fixed key", faults.fixed_key),
            Fault("the same noise in every step", faults.optimizer(faults.SameNoiseEveryStep)),
            Fault("the same noise in every layer", faults.optimizer(faults.SameNoiseEveryLayer)),
            Fault("uniform noise of the same variance", faults.optimizer(faults.UniformNoise)),
            Fault("denominator by the draw", faults.optimizer(faults.DenominatorByDraw)),
            Fault("a Fisher's noise by the clip", measurement_faults.noise_by_the_clip, measured_noise),
            Fault("counts' noise for one cell", measurement_faults.noise_for_one_cell, measured_noise),
        ),
    ),
    Probe(
        "canaries",
        "an attacker who knows all but the coins stays below the claimed epsilon",
        _both_audits,
        (
            Fault("no clip", faults.optimizer(faults.NoClip), _FULL),
            Fault("half the noise", faults.optimizer(faults.HalfNoise), _FULL),
            Fault("no subsampling", faults.no_subsampling, _SAMPLED),
        ),
    ),
    Probe(
        "ledger",
        "the charges cover all that happened",
        ledger,
        (
            Fault("a Fisher that was not charged", ledger_faults.uncharged_fisher),
            Fault("a measurement that was not charged", measurement_faults.not_charged),
            Fault("a round run twice with fresh noise", ledger_faults.fresh_noise),
            Fault("a charge of fewer steps", ledger_faults.fewer_steps),
            Fault("a charge at more noise", ledger_faults.more_noise_charged),
            Fault("a round that was not charged", ledger_faults.not_charged),
            Fault("a training run that the accountant did not see", ledger_faults.unseen_run),
        ),
    ),
)


def run_probe(probe: Probe, seed: int) -> Row:
    """The right code's checks, and each planted fault with the check that caught it."""
    begun = time.perf_counter()
    checks = list(probe.measure(seed))
    rows = [_run_fault(probe, fault, seed) for fault in probe.faults]
    return {
        "name": probe.name,
        "proves": probe.proves,
        "right_code": {
            "passed": all(check.passed for check in checks),
            "checks": [check.to_dict() for check in checks],
        },
        "faults": rows,
        "seconds": time.perf_counter() - begun,
    }


def _run_fault(probe: Probe, fault: Fault, seed: int) -> Row:
    """Measure until one check proves the fault; what the shipped code refuses outright is caught as well."""
    figures, caught_by = [], None
    try:
        with fault.plant():
            for check in (fault.measure or probe.measure)(seed):
                figures.append(check.to_dict())
                if not check.passed and check.proof:
                    caught_by = f"{probe.name}: {check.name}"
                    break
    except Refusal as refusal:
        caught_by = f"{probe.name}: refused, {refusal.name}"
    return {"name": fault.name, "caught_by": caught_by, "figures": figures}


def audit_privacy(seed: int, done: Callable[[Row], object] = lambda row: None) -> Row:
    """Run all probes once.

    Args:
        seed: of records, canaries and seeded keys; a hospital's own keys are the operating system's.
        done: called with each probe's row.
    """
    begun = time.perf_counter()
    rows = []
    for probe in PROBES:
        rows.append(run_probe(probe, seed))
        done(rows[-1])
    seconds = time.perf_counter() - begun
    figures = {check["check"]: check["value"] for row in rows for check in row["right_code"]["checks"]}
    targets = _targets(rows, seconds)
    return {
        "schema": 1,
        "seed": seed,
        "probes": rows,
        "delta": DELTA,
        "confidence": CONFIDENCE,
        "claimed_epsilon": FULL.claimed,
        "lower_bound_binomial": figures.get(lower_bound_name(FULL)),
        "diagnostic_gaussian": figures.get(estimate_name(FULL)),
        "seconds": seconds,
        "targets": targets,
        "passed": all(target["met"] for target in targets.values()),
    }


def _targets(rows: list[Row], seconds: float) -> dict[str, Row]:
    planted = [fault for row in rows for fault in row["faults"]]
    caught = sum(fault["caught_by"] is not None for fault in planted)
    right = sum(row["right_code"]["passed"] for row in rows)
    return {
        "probes_that_pass_the_right_code": _target(right, len(rows), right == len(rows)),
        "planted_faults_caught": _target(caught, len(planted), caught == len(planted)),
        "seconds": _target(seconds, TARGET_SECONDS, seconds < TARGET_SECONDS),
    }


def _target(value: float, target: float, met: bool) -> Row:
    return {"value": value, "target": target, "met": met}


def rates(reports: list[Row]) -> Row:
    """False alarms of the right code by probe, and misses by fault, over several seeds."""
    alarms: Counter[str] = Counter()
    misses: Counter[str] = Counter()
    for row in (row for report in reports for row in report["probes"]):
        alarms[row["name"]] += not row["right_code"]["passed"]
        for fault in row["faults"]:
            misses[f"{row['name']}: {fault['name']}"] += fault["caught_by"] is None
    return {"seeds": len(reports), "false_alarms": dict(alarms), "misses": dict(misses)}
