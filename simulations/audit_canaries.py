"""Probe (c): a one-run audit with canaries (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846).

A canary is an image with one white pixel on grey, and a linear student without bias looks at it: its gradient
points, but for the rounding of grey to uint8, along the weights of that pixel alone. A fair coin decides for
each canary whether the hospital has it; then the real training step runs (image to tensor, Poisson sample,
per-unit gradient, clip, sum, noise, grid, denominator, latent step), and the released weights of each pixel
are that canary's score. What this leaves out: convolutions and GroupNorm, which `audit_sensitivity` covers,
and quantisation, which is post-processing.

Each of several hospitals has its own canaries; together they are one run of one mechanism on disjoint data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedward.client import training
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.models import StudentSpec
from fedward.common.privacy import Mechanism, epsilon
from fedward.common.randomness import KeyedGenerator
from fedward.simulations.audit_bounds import epsilon_lower_bound, gaussian_estimate, right_guesses
from fedward.simulations.audit_step import Check, Floats, audit_settings, keyed, released

SIDE = 32
PER_HOSPITAL = SIDE * SIDE  # one canary a pixel
CLIP = 0.1  # a canary's gradient has the norm .71, so that to leave out the clip shows
DELTA = 1e-5
_GREY = np.array([127, 128], np.uint8)  # -.0039 and .0039 to the student: no byte is 0


@dataclass(frozen=True)
class Design:
    """One audit; all of it is fixed before any output is seen.

    Attributes:
        name: of the audit.
        mechanism: what is claimed.
        hospitals: each with `PER_HOSPITAL` canaries.
        guesses_each: so many of the highest scores are guessed included, so many of the lowest left out.
    """

    name: str
    mechanism: Mechanism
    hospitals: int
    guesses_each: int

    @property
    def claimed(self) -> float:
        """Epsilon at `DELTA` that the accountant states."""
        return epsilon([self.mechanism], DELTA)


# Without subsampling the bound is nearly as sharp as one run allows, so half the noise is proven by it;
# the sampled one is where leaving out the subsampling shows.
FULL = Design("full batch", Mechanism(2.0, 1.0, 1), hospitals=40, guesses_each=400)
SAMPLED = Design("sampled", Mechanism(1.0, 0.1, 8), hospitals=8, guesses_each=200)


@dataclass(frozen=True)
class Outcome:
    """What an audit found."""

    design: Design
    right: int
    lower_bound: float
    estimate: float

    def checks(self) -> Iterator[Check]:
        """The bound against the claim, and the estimate, which is a diagnostic."""
        design, claimed = self.design, self.design.claimed
        yield Check(lower_bound_name(design), self.lower_bound, high=claimed)
        yield Check(estimate_name(design), self.estimate, high=1.15 * claimed, proof=False)


def lower_bound_name(design: Design) -> str:
    """Of the check that proves."""
    return f"{design.name}: lower bound on epsilon (binomial)"


def estimate_name(design: Design) -> str:
    """Of the check that only points."""
    return f"{design.name}: epsilon by a Gaussian fit"


def audit(design: Design, seed: int) -> Outcome:
    """Run one audit."""
    coins, scores = zip(*(_one_hospital(design, seed, site) for site in range(design.hospitals)), strict=True)
    included, all_scores = np.concatenate(coins), np.concatenate(scores)
    right = right_guesses(all_scores, included, design.guesses_each)
    bound = epsilon_lower_bound(right, 2 * design.guesses_each, len(included), DELTA)
    return Outcome(design, right, bound, gaussian_estimate(all_scores, included, DELTA))


def canaries(design: Design, seed: int) -> Iterator[Check]:
    """The checks of one audit."""
    yield from audit(design, seed).checks()


def _one_hospital(design: Design, seed: int, site: int) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Coins and scores (PER_HOSPITAL,), scores in standard deviations of one step's noise."""
    draws = keyed(seed, "canaries", design.name, site)
    included = draws.derive("coins").uniform(PER_HOSPITAL) < 0.5
    labels = (draws.derive("labels").uniform(PER_HOSPITAL) < 0.5).astype(np.int64)
    records = Split(_images(np.flatnonzero(included), draws.derive("grey")), labels[included])
    settings = _settings(design)
    with mock.patch.object(training, "build_student", linear_student):
        total = released(
            settings, torch.zeros(2 * PER_HOSPITAL), records, draws.derive("round"), PER_HOSPITAL
        )
    toward = (
        total[:PER_HOSPITAL] - total[PER_HOSPITAL:]
    ) / 2**0.5  # along class 0's gradient minus class 1's
    scores = np.where(labels == 1, toward, -toward)
    return included, scores / (design.mechanism.noise_multiplier * CLIP)


def _images(pixels: npt.NDArray[np.int64], draws: KeyedGenerator) -> npt.NDArray[np.uint8]:
    """(len(pixels), SIDE, SIDE, 1): one pixel white; grey is rounded at random, so that it cancels out."""
    coins = draws.uniform(len(pixels) * PER_HOSPITAL) < 0.5
    flat = _GREY[coins.astype(np.int64)].reshape(len(pixels), PER_HOSPITAL)
    flat[np.arange(len(pixels)), pixels] = 255
    return flat.reshape(len(pixels), SIDE, SIDE, 1)


def linear_student(spec: StudentSpec) -> nn.Sequential:
    """The audit's student: one weight a pixel and class."""
    inputs = spec.height * spec.width * spec.channels
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, spec.classes, bias=False))


def _settings(design: Design) -> LocalSettings:
    claim = design.mechanism
    return audit_settings(
        height=SIDE,
        width=SIDE,
        sample_rate=claim.sample_rate,
        local_steps=claim.steps,
        noise_multiplier=claim.noise_multiplier,
        max_grad_norm=CLIP,
        target_delta=DELTA,
    )
