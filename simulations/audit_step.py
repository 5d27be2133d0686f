"""What a probe sees: the sum that one round of the real training step releases, and nothing inside of it.

`released` calls `fedward.client.training.train`, the function that a hospital calls, and undoes by public
constants only what comes after the sum: the learning rate, the denominator and EWC's pull. The result is in
units of the clip's own: sum of the clipped gradients plus noise, of all local steps together.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedward.client.ewc import ElasticPull
from fedward.client.training import LocalRound, train
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.models import build_student, flatten, initialise
from fedward.common.randomness import KeyedGenerator
from fedward.simulations.options import Options, plan_study
from fedward.simulations.phantoms import make_phantoms

SIDE = 16
_LARGEST_FLOAT = 3e38
# Each probe varies what it is about; augmentation would only blur what one unit adds.
_PLAIN = {
    "student": "fp32-cnn",
    "sample_rate": 1.0,
    "local_steps": 1,
    "rounds": 1,
    "views": 1,
    "augmentation": "none",
    "class_prior": None,
    "distillation_alpha": 0.0,
}
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One measured figure and where it must lie.

    Attributes:
        name: of the check, within its probe.
        value: measured; NaN never passes.
        low, high: both allowed.
        proof: whether a failure proves a fault; False for an estimate, which only points at one.
    """

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf
    proof: bool = True

    @property
    def passed(self) -> bool:
        """Whether the value lies where it must."""
        return self.low <= self.value <= self.high

    def to_dict(self) -> dict[str, Any]:
        """JSON; a bound that is not there is null."""
        return {
            "check": self.name,
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "kind": "proof" if self.proof else "diagnostic",
            "passed": self.passed,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@lru_cache(maxsize=8)
def phantoms(count: int, seed: int) -> ImageDataset:
    """Synthetic X-rays of two classes, 16 x 16 pixels: `count` in the training split."""
    return make_phantoms(size=SIDE, counts=(count, 2, 2), seed=seed)


@lru_cache(maxsize=1)
def _defaults() -> LocalSettings:
    dataset = phantoms(2, 0)
    return plan_study(Options(epsilon=None, prior="none"), dataset, [dataset.train], None, None).local


def audit_settings(**changes: Any) -> LocalSettings:
    """The settings that `fedward simulate` plans, made plain (no noise, every unit taken), with `changes`."""
    return dataclasses.replace(_defaults(), **{**_PLAIN, **changes})


def start(settings: LocalSettings, seed: int, last_weight_times: float = 1.0) -> Tensor:
    """The students' own initialisation, float32 (n,).

    Args:
        last_weight_times: factor on the last weight: a coordinator may send any model, also one whose
            gradients overflow.
    """
    model = build_student(settings.spec)
    initialise(model, keyed(seed, "start"))
    parameters = [parameter.detach() for parameter in model.parameters()]
    grown = parameters[-2].double() * last_weight_times
    parameters[-2] = grown.clamp(-_LARGEST_FLOAT, _LARGEST_FLOAT)
    return flatten(parameters)


def join(*parts: Split) -> Split:
    """The records of all parts, in order."""
    return Split(
        np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts])
    )


def take(records: Split, which: slice | Sequence[int]) -> Split:
    """Some of the records."""
    return Split(records.images[which], records.labels[which])


def released(
    settings: LocalSettings,
    latents: Tensor,
    records: Split,
    generator: KeyedGenerator,
    num_examples: int,
    pull: ElasticPull | None = None,
) -> Floats:
    """The sum that a round releases, float64 (n,), over all its steps.

    Args:
        num_examples: the declared count, a public constant: data sets that are compared share it.
        pull: EWC's, with a strength as at learning rate 1; `settings.local_steps` must then be 1.
    """
    # At this learning rate the latents move by the sum itself, which spares most of float32's rounding.
    rate = settings.sample_rate * num_examples
    at_rate = pull and dataclasses.replace(pull, ewc_lambda=pull.ewc_lambda / rate)
    change, _ = train(LocalRound(settings, rate, num_examples, latents, at_rate), records, generator)
    moved = change.double()
    return -np.asarray(moved if pull is None else _before_pull(latents.double(), moved, pull))


def _before_pull(latents: Tensor, moved: Tensor, pull: ElasticPull) -> Tensor:
    """Undo theta <- (theta + s*anchor) / (1 + s), s = lambda*F."""
    strength = pull.ewc_lambda * flatten(pull.fisher_diagonal).double()
    anchor = flatten(pull.anchor).double()
    return (latents + moved) * (1.0 + strength) - strength * anchor - latents


def keyed(seed: int, *labels: str | int) -> KeyedGenerator:
    """The audit's own generators: of a seed, so that a failure can be shown again."""
    return KeyedGenerator.from_seed(seed, "audit", *labels)


def no_records(like: Split) -> Split:
    """A hospital without a record."""
    return take(like, slice(0, 0))
