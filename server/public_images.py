"""Public images of the study's kind, and what the public teacher sees in them: what a student is taught by.

Of a public set, the class whose images look most like the study's reference records is taken whole, and of
each other class some; each image in three views. Targets are the teacher's features, standardised, on their
leading principal components, half whitened: the first say most, and the last are not drowned.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedward.common.convolutions import EMBEDDING
from fedward.common.datasets import Split
from fedward.common.images import augment, to_tensor
from fedward.common.randomness import KeyedGenerator
from fedward.server.public_teacher import teacher_features

_NEAREST, _OTHERS = 9000, 700  # images taken of a class
_LOOKED_AT = 100  # of a class, to find the nearest
_VIEWS = 3
_BATCH = 1280
# A feature's deviation, and a component's share of the variance, below which it says nothing.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class PublicImages:
    """What a student is distilled on.

    Attributes:
        images: float16 (m, channels, height, width) in [-1, 1].
        targets: float32 (m, 128), of variance 1 over all.
    """

    images: Tensor
    targets: Tensor


def public_images(
    teacher: nn.Module,
    public: Split,
    reference: np.ndarray,
    generator: KeyedGenerator,
    tell: Callable[[str], None] = lambda sentence: None,
) -> PublicImages:
    """Choose images of `public`, and show them to the teacher; ten milliseconds an image on one core.

    Args:
        public: images and labels of any task, uint8 (n, height, width, channels).
        reference: the study's public reference images, of the same shape.
    """
    chosen = public.images[_chosen(teacher, public, reference, generator)]
    views, features = [], []
    draws = generator.derive("views")
    for view in range(_VIEWS):
        for start in range(0, len(chosen), _BATCH):
            images = to_tensor(chosen[start : start + _BATCH])
            images = images if view == 0 else augment(images, "affine", draws)
            views.append(images.half())
            features.append(teacher_features(teacher, images))
            done = view * len(chosen) + start + len(images)
            tell(f"the teacher has seen {done:,} of {_VIEWS * len(chosen):,} public images")
    return PublicImages(torch.cat(views), half_whitened(np.concatenate(features)))


def _chosen(
    teacher: nn.Module, public: Split, reference: np.ndarray, generator: KeyedGenerator
) -> np.ndarray:
    """Rows of the images that are taken, in random order."""
    draws = generator.derive("choice")
    labels = public.labels if public.labels.ndim == 1 else np.zeros(len(public.images), np.int64)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rows = [own[draws.permutation(len(own))] for own in classes]
    middle = _middle(teacher, reference)
    distances = [np.linalg.norm(_middle(teacher, public.images[own]) - middle) for own in rows]
    nearest = int(np.argmin(distances))
    taken = [own[: _NEAREST if index == nearest else _OTHERS] for index, own in enumerate(rows)]
    together = np.concatenate(taken)
    return together[draws.permutation(len(together))]


def _middle(teacher: nn.Module, images: np.ndarray) -> np.ndarray:
    return np.asarray(teacher_features(teacher, to_tensor(images[:_LOOKED_AT])).mean(axis=0))


def half_whitened(features: np.ndarray) -> Tensor:
    """Standardised features on their leading 128 principal components, each divided by the fourth root of its
    variance; then all by one number, so that the variance over all values is 1. Float32 (m, 128).

    Components without variance are zero.
    """
    values = torch.from_numpy(features.astype(np.float64))
    values = (values - values.mean(dim=0)) / (values.std(dim=0, correction=0) + _SMALLEST)
    variances, axes = torch.linalg.eigh(values.T @ values / max(1, len(values)))
    variances, axes = variances.flip(0)[:EMBEDDING], axes.flip(1)[:, :EMBEDDING]
    kept = variances > _SMALLEST * variances[0]
    targets = (values @ axes) * torch.where(kept, variances.clamp(min=1e-30) ** -0.25, 0.0)
    scaled: Tensor = targets / targets.std(correction=0).clamp(min=1e-30)
    return scaled.to(torch.float32)
