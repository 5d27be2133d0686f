"""Training without privacy, on public data only: a public teacher, and the comparisons of a simulation."""

import numpy as np
import torch

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
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on the latents of the quantised student.

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
    optimizer = torch.optim.AdamW(latents, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    offset, draws = prior_offset(settings.class_prior, settings.task), generator.derive("batches")
    for _ in range(steps):
        load_latents(model, latents, settings.spec.precisions)
        rows = (draws.words(_BATCH) % np.uint64(len(records.images))).astype(np.int64)
        images = augment(to_tensor(records.images[rows]), "affine", draws)
        loss = classification(
            model(images), torch.from_numpy(records.labels[rows]), settings.task, offset
        ).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for latent, gradient in zip(latents, gradients, strict=True):
            latent.grad = gradient
        optimizer.step()
        schedule.step()
    return flatten(latents).numpy()
