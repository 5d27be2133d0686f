"""Weight quantisers: ternary (Li, Zhang & Liu 2016, arXiv 1605.04711), symmetric int4 and int8, per channel.

Training keeps fp32 latents; the network always computes with ``dequantize(*quantize(latent))``. Under DP
the quantiser is post-processing of a noised gradient. The graph that is exported multiplies the very same
codes and scales, so export is exact.
"""

from collections.abc import Sequence
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
    return _symmetric(latent, 127)


def int4(latent: Tensor) -> Quantized:
    """Codes in -7..7; scale a channel's largest magnitude over 7; else like int8."""
    return _symmetric(latent, 7)


def _symmetric(latent: Tensor, largest: int) -> Quantized:
    scale = (latent.detach().abs().flatten(1).amax(dim=1) / float(largest)).to(torch.float32)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = torch.round(latent.detach() / _by_channel(safe, latent)).clamp(-largest, largest)
    return Quantized(codes.to(torch.int8), scale)


QUANTIZERS = {"ternary": ternary, "int4": int4, "int8": int8}
BY_BITS = {2: "ternary", 4: "int4", 8: "int8"}
# One for all weights, fp32 or a key of `QUANTIZERS`; or one for each weight that is quantised, in order.
Precision = str | tuple[str, ...]


def dequantize(quantized: Quantized) -> Tensor:
    """codes * scale, float32: what the network computes with."""
    return quantized.codes.to(torch.float32) * _by_channel(quantized.scale, quantized.codes)


def is_quantized(parameter: Tensor) -> bool:
    """Whether a parameter is quantised: weights of two axes or more are, no norm, position or bias."""
    return parameter.dim() >= 2


def each_precision(precision: Precision, parameters: Sequence[Tensor]) -> list[str]:
    """What each parameter is quantised to; fp32 for those that are not.

    Raises:
        ValueError: another number of precisions than of weights that are quantised.
    """
    weights = sum(map(is_quantized, parameters))
    names = iter((precision,) * weights if isinstance(precision, str) else precision)
    if not isinstance(precision, str) and len(precision) != weights:
        raise ValueError(f"{len(precision)} precisions do not fit {weights} weights")
    return [next(names) if is_quantized(parameter) else "fp32" for parameter in parameters]


def behind(precision: Precision, parameters: Sequence[Tensor]) -> Precision:
    """The precision of the weights that come after `parameters`."""
    return precision if isinstance(precision, str) else precision[sum(map(is_quantized, parameters)) :]


def fake_quantize(latent: Tensor, precision: str) -> Tensor:
    """What the network computes with in place of `latent`; the latent itself for fp32 or one axis."""
    if precision == "fp32" or not is_quantized(latent):
        return latent.detach().clone()
    return dequantize(QUANTIZERS[precision](latent))


@torch.no_grad()
def load_latents(model: nn.Module, latents: list[Tensor], precision: Precision) -> None:
    """Write Q(latent) into every parameter of `model`, in place."""
    each = each_precision(precision, latents)
    for parameter, latent, own in zip(model.parameters(), latents, each, strict=True):
        parameter.copy_(fake_quantize(latent, own))
