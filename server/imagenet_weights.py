"""What the public teacher's ImageNet weights give a `mobile` student, convolution by convolution.

The student has the same kind of blocks, but fewer of them, other widths and smaller kernels. Each of its
convolutions takes a block's weights where the two overlap (weight selection, Xu et al. 2023, arXiv
2311.18823): of the inner channels those of the largest L1 norm, of a larger kernel its middle.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedward.server.public_teacher import IMAGENET_DEVIATION

_BLOCKS = (1, 3, 4, 5, 6, 8)  # of the teacher, for the student's six


@dataclass(frozen=True)
class Source:
    """What a convolution's first channels take: weights (o, i, k, k), and of each channel the mean and the
    (signed) deviation that a batch norm gave it (o,)."""

    weights: Tensor
    mean: Tensor
    deviation: Tensor


def sources(teacher: Any, channels: int, widths: list[int]) -> Iterator[Source]:
    """For a student's convolutions in order, but for the last, which the teacher has none like.

    Args:
        channels: of the images: the stem's kernels of the three colours are summed for grey ones.
        widths: output channels of each convolution of the student.
    """
    stem = teacher._conv_stem.weight / IMAGENET_DEVIATION
    yield _source(stem if channels == 3 else stem.sum(dim=1, keepdim=True), teacher._bn0)
    for place, index in enumerate(_BLOCKS):
        block = teacher._blocks[index]
        expand, project = block._expand_conv.weight, block._project_conv.weight
        if place == 0:
            expand = _behind_first_block(expand, teacher._blocks[0])
        norms = project.abs().sum(dim=(0, 2, 3))
        largest = norms.argsort(descending=True, stable=True)[: widths[1 + 3 * place]].sort().values
        yield _source(expand[largest], block._bn0, largest)
        yield _source(block._depthwise_conv.weight[largest], block._bn1, largest)
        given = _source(project[:, largest], block._bn2)
        yield replace(given, mean=torch.zeros_like(given.mean))  # the next layer is linear in it


def _source(weights: Tensor, norm: Any, channels: Tensor | slice = slice(None)) -> Source:
    """With deviations of about 1: ReLU and the next layer's calibration make up for any common factor."""
    scale = norm.weight.abs().mean()
    return Source(weights, norm.bias[channels] / scale, norm.weight[channels] / scale)


def _behind_first_block(expand: Tensor, block: Any) -> Tensor:
    """`expand` (o, 16, 1, 1) as it acts on the input of the teacher's first block, which has no expansion and
    no counterpart: (o, 32, 1, 1). Each depthwise kernel stands by its sum, each batch norm by its gain."""
    looked = block._depthwise_conv.weight.sum(dim=(1, 2, 3)) * _gain(block._bn1)
    projected = block._project_conv.weight[:, :, 0, 0] * _gain(block._bn2)[:, None] * looked
    composed: Tensor = (expand[:, :, 0, 0] @ projected)[:, :, None, None]
    return composed


def _gain(norm: Any) -> Tensor:
    gain: Tensor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return gain
