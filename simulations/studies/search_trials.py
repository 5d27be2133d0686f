"""One trial of a search (`fedward.simulations.studies.search`): what a student costs, and what it learns.

A trial's key holds `network`, `bits` (of `BITS`), `widths` or null, `steps` and `seed`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from fedward.common.arithmetic import multiply_adds
from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import DatasetRefused, SettingRefused
from fedward.common.metrics import macro_auc
from fedward.common.models import quantized_weights
from fedward.common.onnx_options import onnx_session
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import to_onnx
from fedward.server.leftovers import rounded
from fedward.server.mixed_precision import model_bytes, with_bits_within
from fedward.server.reference import halve, measure
from fedward.server.teacher import train_plainly
from fedward.simulations.options import Options, local_settings
from fedward.simulations.sources import find_dataset
from fedward.simulations.studies.rows import Row
from fedward.simulations.studies.timing import in_turns
from fedward.simulations.studies.untrained import start_latents

BITS = ("ternary", "int8", "mixed")
_TURNS = 100


@dataclass(frozen=True)
class Budget:
    """What a release may take at most: bytes of its model file, milliseconds for one image.

    Raises:
        SettingRefused: a part that is no number above 0.
    """

    most_bytes: int
    most_ms: float

    def __post_init__(self) -> None:
        """Check both."""
        if not all(math.isfinite(part) and part > 0 for part in (self.most_bytes, self.most_ms)):
            raise SettingRefused(f"A budget is numbers above 0, not {self}.")

    def __str__(self) -> str:
        """For a sentence."""
        return f"{self.most_bytes:,} bytes and {self.most_ms:g} ms"

    def excess(self, row: Row) -> dict[str, float]:
        """By how much of itself each part of the budget is passed; not above 0 within it."""
        return {
            "bytes": row["bytes"] / self.most_bytes - 1.0,
            "milliseconds": row["milliseconds"] / self.most_ms - 1.0,
        }

    def holds(self, row: Row) -> bool:
        """Whether the row's student is within it."""
        return max(self.excess(row).values()) <= 0.0


@dataclass(frozen=True)
class PublicRecords:
    """All that a search reads; `training` is the training split and half A of the validation split."""

    dataset: ImageDataset
    training: Split
    half_a: Split
    half_b: Split


def public_records(spec: str) -> PublicRecords:
    """Of the data set that `spec` names, which is public.

    Raises:
        UnknownName, SettingRefused, DatasetRefused: as `find_dataset`; or half B gives no AUC.
    """
    dataset = find_dataset(spec)
    halves, train = halve(dataset.val), dataset.train
    half_a, half_b = halves.calibration, halves.evaluation
    alike = np.zeros((len(half_b.labels), len(dataset.classes)), np.float32)
    if macro_auc(alike, half_b.labels, dataset.task) is None:
        raise DatasetRefused(
            f"Half of {dataset.name}'s validation split has images of one class only, which gives no AUC; "
            "name a data set with more of them."
        )
    images = np.concatenate([train.images, half_a.images])
    return PublicRecords(
        dataset, Split(images, np.concatenate([train.labels, half_a.labels])), half_a, half_b
    )


def measure_trial(key: Row, public: PublicRecords, budget: Budget) -> Row:
    """What the key's student costs and, where that is within the budget, what it learns in the key's steps.

    A row without `auc` is of a student that was not trained.
    """
    settings = _settings(key, public.dataset)
    found = _costs(settings, start_latents(settings.spec))
    if key["steps"] == 0 or not budget.holds(found):
        return found
    settings, latents = _trained(settings, key, public, budget)
    found["bytes"] = model_bytes(settings, latents)
    found["bits"] = None if settings.bits is None else list(settings.bits)
    return {**found, **measure(settings, latents, public.half_b)}


def _settings(key: Row, dataset: ImageDataset) -> LocalSettings:
    """Of the key's student; a mixed one has the fewest bits, the least that it can take."""
    is_mixed = key["bits"] == "mixed"
    student = f"{'int8' if is_mixed else key['bits']}-{key['network']}"
    options = Options(student=student, hospitals=1, epsilon=None)
    widths = None if key["widths"] is None else tuple(key["widths"])
    settings = replace(local_settings(options, dataset, dataset.val), widths=widths)
    return _all_ternary(settings) if is_mixed else settings


def _all_ternary(settings: LocalSettings) -> LocalSettings:
    return replace(settings, bits=(2,) * quantized_weights(settings.spec))


def _costs(settings: LocalSettings, latents: Vector) -> Row:
    released = rounded(settings, latents)
    image = np.zeros((1, settings.channels, settings.height, settings.width), np.float32)
    sessions = {"release": onnx_session(to_onnx(settings, released))}
    return {
        "student": settings.student,
        "parameters": len(latents),
        "bytes": model_bytes(settings, released),
        "multiply_adds": multiply_adds(settings.spec),
        "milliseconds": in_turns(sessions, image, _TURNS)["release"],
    }


def _trained(
    settings: LocalSettings, key: Row, public: PublicRecords, budget: Budget
) -> tuple[LocalSettings, Vector]:
    """The student with its bits where it has any, and the latents of its release."""
    generator, steps = KeyedGenerator.from_seed(key["seed"], "search"), key["steps"]
    if settings.bits is None:
        return settings, rounded(settings, train_plainly(settings, public.training, steps, generator))
    whole, tuned = replace(settings, bits=None), steps // 2
    latents = train_plainly(whole, public.training, steps - tuned, generator)
    mixed = _with_bits(whole, rounded(whole, latents), public.half_a, budget)
    latents = train_plainly(mixed, public.training, tuned, generator.derive("tuning"), latents)
    return mixed, rounded(mixed, latents)


def _with_bits(settings: LocalSettings, latents: Vector, half_a: Split, budget: Budget) -> LocalSettings:
    # Where even ternary weights have grown too large, the row says so.
    fewest = model_bytes(_all_ternary(settings), latents)
    return with_bits_within(settings, latents, half_a, max(fewest, budget.most_bytes))
