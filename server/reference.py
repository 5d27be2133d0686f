"""Public reference data that the study names, in two halves: A calibrates and gives EWC's Fisher, B measures.

Reference data is public: nothing here costs privacy, and nothing here is a hospital's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.decision import decide
from fedward.common.errors import DatasetRefused
from fedward.common.images import to_tensor
from fedward.common.losses import classification
from fedward.common.metrics import evaluate
from fedward.common.models import build_student, unflatten
from fedward.common.per_sample import PerSampleGradients
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator

_BATCH = 256
EXPLANATION = "The study has no reference data: no figures by round, no calibration and no EWC."


@dataclass(frozen=True)
class Reference:
    """The two halves; disjoint, and the same for the same records whatever the seed of the study."""

    calibration: Split  # half A
    evaluation: Split  # half B


def halve(records: Split) -> Reference:
    """Split public records into halves A and B by a fixed permutation.

    Raises:
        DatasetRefused: fewer than two records.
    """
    if len(records.images) < 2:
        raise DatasetRefused("Reference data needs at least two images; name another set, or none.")
    order = KeyedGenerator.from_seed(0, "reference halves").permutation(len(records.images))
    middle = len(order) // 2
    half_a, half_b = order[:middle], order[middle:]
    return Reference(
        Split(records.images[half_a], records.labels[half_a]),
        Split(records.images[half_b], records.labels[half_b]),
    )


def class_prior(records: Split, classes: int) -> tuple[float, ...]:
    """Public class frequencies, each at least .01: for single-label tasks they sum to 1."""
    if records.labels.ndim == 2:
        return tuple(float(p) for p in records.labels.mean(axis=0).clip(0.01, 0.99))
    frequency = np.bincount(records.labels, minlength=classes) / len(records.labels)
    raised = frequency.clip(min=0.01)
    return tuple(float(p) for p in raised / raised.sum())


@torch.no_grad()
def student_logits(settings: LocalSettings, latents: Vector, images: np.ndarray) -> Vector:
    """Logits of the quantised student, float32 (n, classes), on uint8 images (n, h, w, c)."""
    torch.set_num_threads(1)
    model = build_student(settings.spec)
    load_latents(model, _parts(latents, model), settings.spec.precisions)
    batches = [model(to_tensor(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
    return np.concatenate([batch.numpy() for batch in batches])


def measure(
    settings: LocalSettings, latents: Vector, records: Split, thresholds: tuple[float, ...] = ()
) -> dict[str, float | None]:
    """AUC, accuracy and balanced accuracy of the quantised student on labelled public records."""
    logits = student_logits(settings, latents, records.images)
    return evaluate(logits, records.labels, settings.task, decide(logits, settings.task, thresholds))


def fisher_diagonal(settings: LocalSettings, latents: Vector, records: Split) -> Vector:
    """Diagonal of the empirical Fisher information on public records, float32 (n,): the mean of squared
    per-sample gradients of the log-likelihood at Q(latents), scaled to a mean of 1.

    Kirkpatrick et al. 2017; the scale makes `ewc_lambda` comparable between students.
    """
    return _of_mean_one(
        _squares(settings, latents, records, lambda x, y: classification(x, y, settings.task))
    )


def logit_fisher_diagonal(settings: LocalSettings, latents: Vector, records: Split) -> Vector:
    """Diagonal of the Fisher information as if the logits were observed with unit Gaussian noise, on public
    records, float32 (n,): the logits' squared gradients at Q(latents), scaled to a mean of 1.

    It reads no label and weighs every record alike (Aljundi et al. 2018, arXiv 1711.09601, with a gradient a
    logit), where the few records that the student gets wrong make up nearly all of `fisher_diagonal`. What
    the logits of a single-label task share decides nothing and does not count.
    """
    total = torch.zeros(len(latents))
    for column in range(len(settings.classes)):
        own = _own_part(settings.task, column)
        total += _squares(settings, latents, records, lambda x, _, own=own: own(x))  # type: ignore[misc]
    return _of_mean_one(total)


def _own_part(task: str, column: int) -> Callable[[Tensor], Tensor]:
    if task == "multi-label":
        return lambda logits: logits[:, column]
    return lambda logits: logits[:, column] - logits.mean(dim=1)


def _squares(
    settings: LocalSettings,
    latents: Vector,
    records: Split,
    function: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The sum over records of the squared gradients of `function(logits, labels)`, (m,), shape (n,)."""
    torch.set_num_threads(1)
    model = build_student(settings.spec)
    load_latents(model, _parts(latents, model), settings.spec.precisions)
    engine, total = PerSampleGradients(model), torch.zeros(len(latents))
    for start in range(0, len(records.images), _BATCH):
        labels = torch.from_numpy(records.labels[start : start + _BATCH])
        images = to_tensor(records.images[start : start + _BATCH])
        gradients = engine.compute(images, lambda x, y=labels: function(x, y))  # type: ignore[misc]
        total += torch.cat([gradient.square().sum(dim=0).flatten() for gradient in gradients])
    return total


def _of_mean_one(total: Tensor) -> Vector:
    mean = float(total.mean())
    return (total / mean if mean > 0 else total).numpy().astype(np.float32)


def _parts(latents: Vector, model: torch.nn.Module) -> list[Tensor]:
    return unflatten(torch.from_numpy(latents), list(model.parameters()))
