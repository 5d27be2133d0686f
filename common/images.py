"""Images as the student sees them, and label-preserving augmentation from the keyed generator."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedward.common.randomness import KeyedGenerator

# Public constants: pixel/255, then (x - MEAN) / STD. Statistics of private images are not used.
MEAN = 0.5
STD = 0.5
_DRAWS = 6  # two shifts, angle, scale, contrast, brightness


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w, c) -> float32 (n, c, h, w) in [-1, 1]."""
    planes = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    return planes.div_(255.0).sub_(MEAN).div_(STD)


def _between(uniforms: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniforms


def augment(images: Tensor, kind: str, generator: KeyedGenerator) -> Tensor:
    """A random view of each image, shape kept.

    Args:
        images: (m, c, h, w) in [-1, 1].
        kind: none; shift (up to 7% of a side); affine (rotation to 10 degrees, scale .9 to 1.1, shift to 7%,
            contrast .8 to 1.25 and brightness to .1).
        generator: gives each image the next `_DRAWS` values, so that cutting a batch in two changes no view.
    """
    count = len(images)
    if kind == "none" or count == 0:
        return images
    draws = torch.from_numpy(generator.uniform(count * _DRAWS).reshape(count, _DRAWS)).to(torch.float32)
    shift = [_between(draws[:, column], -0.14, 0.14) for column in (0, 1)]  # of a half side
    angle, scale = torch.zeros(count), torch.ones(count)
    if kind == "affine":
        angle = _between(draws[:, 2], -math.pi / 18, math.pi / 18)
        scale = _between(draws[:, 3], 0.9, 1.1)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if kind == "shift":
        return moved
    contrast = _between(draws[:, 4], 0.8, 1.25).view(-1, 1, 1, 1)
    brightness = _between(draws[:, 5], -0.1, 0.1).view(-1, 1, 1, 1)
    return (moved * contrast + brightness).clamp(-1.0, 1.0)
