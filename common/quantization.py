"""Weight quantisers: ternary (Li, Zhang & Liu 2016, arXiv 1605.04711) and symmetric int8, per output channel.

Training keeps fp32 latents; the network always computes with ``dequantize(*quantize(latent))``. Under DP
the quantiser is post-processing of a noised gradient. The graph that is exported multiplies the very same
codes and scales, so export is exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_TERNARY_THRESHOLD = 0.7  # of the mean magnitude; Li et al., equation 6


@dataclass(frozen=True)
class Quantized:
    """Codes int8, of the weight's shape; scale float32, one for each output channel (first axis)."""

    codes: Tensor
    scale: Tensor


def _by_channel(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (like.dim() - 1))


def ternary(latent: Tensor) -> Quantized:
    """Codes in {-1, 0, 1}; threshold .7 of a channel's mean magnitude, scale the mean above it.

    Idempotent to the last bit: the dequantised weight has the same codes and scale again, because sums of
    float32 are taken in float64. An all-zero channel has scale 0; NaN or infinity make all of one NaN.
    """
    magnitude = latent.detach().double().abs().flatten(1)
    kept = magnitude > _TERNARY_THRESHOLD * magnitude.mean(dim=1, keepdim=True)
    scale = (magnitude * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
    codes = latent.detach().sign() * kept.view_as(latent)
    return Quantized(codes.to(torch.int8), scale.to(torch.float32))


def int8(latent: Tensor) -> Quantized:
    """Codes in -127..127; scale a channel's largest magnitude over 127.

    Idempotent to the last bit. An all-zero channel has scale 0; one with NaN or infinity dequantises to NaN
    wherever that stood.
    """
    scale = (latent.detach().abs().flatten(1).amax(dim=1) / 127.0).to(torch.float32)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = torch.round(latent.detach() / _by_channel(safe, latent)).clamp(-127, 127)
    return Quantized(codes.to(torch.int8), scale)


QUANTIZERS = {"ternary": ternary, "int8": int8}


def dequantize(quantized: Quantized) -> Tensor:
    """codes * scale, float32: what the network computes with."""
    return quantized.codes.to(torch.float32) * _by_channel(quantized.scale, quantized.codes)


def is_quantized(parameter: Tensor) -> bool:
    """Whether a parameter is quantised: weights of two axes or more are, no norm, position or bias."""
    return parameter.dim() >= 2


def fake_quantize(latent: Tensor, precision: str) -> Tensor:
    """What the network computes with in place of `latent`; the latent itself for fp32 or one axis."""
    if precision == "fp32" or not is_quantized(latent):
        return latent.detach().clone()
    return dequantize(QUANTIZERS[precision](latent))


@torch.no_grad()
def load_latents(model: nn.Module, latents: list[Tensor], precision: str) -> None:
    """Write Q(latent) into every parameter of `model`, in place."""
    for parameter, latent in zip(model.parameters(), latents, strict=True):
        parameter.copy_(fake_quantize(latent, precision))
