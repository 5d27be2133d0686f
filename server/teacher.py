"""Training without privacy, on public data only: a public teacher, and the comparisons of a simulation."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.images import augment, to_tensor
from fedward.common.losses import classification, prior_offset
from fedward.common.models import build_student, flatten, initialise, unflatten
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator

_BATCH = 128


def train_plainly(
    settings: LocalSettings,
    records: Split,
    steps: int,
    generator: KeyedGenerator,
    start: Vector | None = None,
) -> Vector:
    """AdamW on the latents of the quantised student.

    Straight-through: gradients at Q(latent) move the latent. Learning rate 3e-3 with a cosine to zero, batch
    128, affine augmentation. Returns latents, float32 (n,).

    Args:
        start: latents to go on from, float32 (n,); None for a random start.
    """
    torch.set_num_threads(1)
    model = build_student(settings.spec)
    initialise(model, generator.derive("student"))
    latents = [parameter.detach().clone() for parameter in model.parameters()]
    if start is not None:
        latents = [part.clone() for part in unflatten(torch.from_numpy(start), latents)]
    descend = Descent(latents, 3e-3, steps)
    offset, draws = prior_offset(settings.class_prior, settings.task), generator.derive("batches")
    for _ in range(steps):
        load_latents(model, latents, settings.spec.precisions)
        rows = drawn_rows(draws, _BATCH, len(records.images))
        images = augment(to_tensor(records.images[rows]), "affine", draws)
        loss = classification(
            model(images), torch.from_numpy(records.labels[rows]), settings.task, offset
        ).mean()
        descend(torch.autograd.grad(loss, list(model.parameters())))
    return flatten(latents).numpy()


def drawn_rows(draws: KeyedGenerator, batch: int, count: int) -> np.ndarray:
    """So many of the rows 0 .. count-1, with replacement, int64 (batch,)."""
    return (draws.words(batch) % np.uint64(count)).astype(np.int64)


class Descent:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on latents, in place, by gradients taken elsewhere,
    with a cosine to zero.
    """

    def __init__(self, latents: list[Tensor], rate: float, steps: int) -> None:
        """Steps that start at `rate` and end at zero after `steps`."""
        self._latents = latents
        self._optimizer = torch.optim.AdamW(latents, lr=rate)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, max(1, steps))

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        """One step; a gradient for each latent."""
        for latent, gradient in zip(self._latents, gradients, strict=True):
            latent.grad = gradient
        self._optimizer.step()
        self._schedule.step()
