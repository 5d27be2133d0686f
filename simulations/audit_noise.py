"""Probe (b): the noise that is released is the noise that is accounted for.

What is left of a released sum when the noiseless one is taken away must be, value by value, an independent
Gaussian of standard deviation sigma * clip: over a sum of three physical batches, in steps whose Poisson
sample is empty, from step to step, and from round to round of a hospital whose keys come from the operating
system. Each limit lets the right code fail about once in a million runs.
"""

import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_ndtr
from scipy.stats import kstest

from fedward.client.hospital import Hospital, create_hospital
from fedward.client.training import PHYSICAL_ROWS
from fedward.common.codec import decode, encode
from fedward.common.config import LocalSettings, declared_count
from fedward.common.datasets import Split
from fedward.common.messages import LATENTS, TrainRequest
from fedward.simulations.audit_step import (
    Check,
    Floats,
    audit_settings,
    keyed,
    phantoms,
    released,
    start,
    take,
)

SIGMA, CLIP = 1.5, 0.5
_STANDARD_ERRORS = 5.0  # a Gaussian passes them once in 1.7 million
_LARGEST_LAG = 6.8  # standard errors; the largest of 30,000 lags passes them once in 3 million
_KS_CHANCE = 1e-6
_ANDERSON_DARLING = 15.0  # chance below 1e-6 (the statistic's tail falls like exp(-A^2))
_LARGEST_VALUE = (3.4, 6.8)  # of some 58,000 standard Gaussian values
_RATE_OF_EMPTY = 1e-6  # the sample of 3 units is empty but for a chance of 3 in a million
_STEPS = 3


def noise(seed: int) -> Iterator[Check]:
    """All checks; a probe that looks for a fault may stop at the first that fails."""
    batched = _over_physical_batches(seed)
    yield from moments("three physical batches", batched)
    steps = _of_empty_steps(seed)
    yield from moments("empty samples", np.concatenate(steps))
    yield _correlation("steps", steps)
    yield _repeats("within a step", steps[0])
    rounds = _of_rounds(seed)
    yield from moments("a hospital's rounds", np.concatenate(rounds))
    yield _correlation("rounds", rounds)


def moments(where: str, values: Floats) -> Iterator[Check]:
    """Variance and law of what should be standard Gaussian values, (n,)."""
    error = _STANDARD_ERRORS * (2.0 / len(values)) ** 0.5
    yield Check(f"{where}: variance", float(np.mean(values**2)), 1.0 - error, 1.0 + error)
    bias = _STANDARD_ERRORS / len(values) ** 0.5
    yield Check(f"{where}: mean", float(values.mean()), -bias, bias)
    yield Check(f"{where}: Kolmogorov-Smirnov p", float(kstest(values, "norm").pvalue), low=_KS_CHANCE)
    yield Check(f"{where}: Anderson-Darling", _anderson_darling(values), high=_ANDERSON_DARLING)
    yield Check(f"{where}: largest value", float(np.max(np.abs(values))), *_LARGEST_VALUE)


def _anderson_darling(values: Floats) -> float:
    """Anderson and Darling 1954 against the standard Gaussian, no parameter fitted."""
    ordered, count = np.sort(values), len(values)
    weights = 2 * np.arange(1, count + 1) - 1
    return float(-count - np.mean(weights * (log_ndtr(ordered) + log_ndtr(-ordered[::-1]))))


def _over_physical_batches(seed: int) -> Floats:
    records = phantoms(2 * PHYSICAL_ROWS + 40, seed).train
    declared = len(records.images) + 60  # the denominator is public: not the number of units that came
    with_noise, without = _settings(SIGMA), _settings(0.0)
    latents, key = start(with_noise, seed), ("noise", "batches")
    noised = released(with_noise, latents, records, keyed(seed, *key), declared)
    return _scaled(noised - released(without, latents, records, keyed(seed, *key), declared))


def _of_empty_steps(seed: int) -> list[Floats]:
    """The noise of each step alone: what one step more adds under the same key, where no unit is drawn."""
    records = take(phantoms(8, seed).train, slice(0, 3))
    sums = []
    for steps in range(1, _STEPS + 1):
        settings = _settings(SIGMA, sample_rate=_RATE_OF_EMPTY, local_steps=steps)
        sums.append(released(settings, start(settings, seed), records, keyed(seed, "noise", "empty"), 10))
    return [_scaled(step) for step in np.diff(sums, axis=0, prepend=np.zeros((1, len(sums[0]))))]


def _of_rounds(seed: int) -> list[Floats]:
    """The noise in two replies of a hospital with keys of the operating system's, full batches."""
    records = take(phantoms(24, seed).train, slice(0, 24))
    settings = _settings(SIGMA, rounds=2)
    latents = start(settings, seed)
    without = released(_settings(0.0), latents, records, keyed(seed), declared_count(len(records.images)))
    with tempfile.TemporaryDirectory() as folder:
        replies = _replies(Path(folder), settings, latents, records)
    return [_scaled(reply - without) for reply in replies]


def _replies(folder: Path, settings: LocalSettings, latents: torch.Tensor, records: Split) -> list[Floats]:
    profile = create_hospital(folder, "audited", records, 50.0, settings.target_delta, None)
    hospital, packed = Hospital(folder), {LATENTS: encode(latents.numpy(), "fp32")}
    updates = []
    for server_round in (1, 2):
        request = TrainRequest("audit", server_round, settings, 1.0, ("fp32", "fp32"), packed)
        update = hospital.answer(request).update
        updates.append(-decode(update, len(latents), "fp32").astype(np.float64) * profile.num_examples)
    return updates


def _settings(sigma: float, **changes: float) -> LocalSettings:
    return audit_settings(max_grad_norm=CLIP, noise_multiplier=sigma, **changes)


def _scaled(values: Floats) -> Floats:
    return values / (SIGMA * CLIP)


def _correlation(what: str, vectors: list[Floats]) -> Check:
    """The largest correlation of two of the vectors, in standard errors of independent ones."""
    pairs = [abs(np.corrcoef(first, second)[0, 1]) for first, second in combinations(vectors, 2)]
    return Check(
        f"between {what}: correlation in standard errors",
        float(np.max(pairs)) * len(vectors[0]) ** 0.5,
        high=_STANDARD_ERRORS + 0.5,
    )


def _repeats(where: str, values: Floats) -> Check:
    """The largest autocorrelation at any lag, in standard errors: a stretch of noise used twice shows."""
    spectrum = np.abs(np.fft.rfft(values)) ** 2
    lags = np.fft.irfft(spectrum, len(values))[1:] / (np.mean(values**2) * len(values))
    return Check(
        f"{where}: autocorrelation in standard errors",
        float(np.max(np.abs(lags))) * len(values) ** 0.5,
        high=_LARGEST_LAG,
    )
