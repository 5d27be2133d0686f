"""What a quantised transformer does not quantise in training, made small for its release.

Positions and biases are rounded to int8 by tensor, norms and weights' scales to half precision. In fp32
they are a fifth of the bytes of a ternary transformer's release, and most of a patch between two. A tensor is
rounded to half precision only where that moves no value by more than half a unit in the last place of the
tensor's largest: one too small or too large for that stays fp32. The convolutional students keep theirs: they
have few, and their releases have the bytes that they always had.
"""

import torch
from torch import Tensor

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.models import StudentSpec, build_student, flatten, unflatten
from fedward.common.quantization import QUANTIZERS, Quantized, dequantize, each_precision, int8, is_quantized

_FAMILIES = ("vit",)
IN_INT8 = ".bias"  # how the names of these parameters end; a position's does, too
_MOST_MOVED = 2.0**-11  # of a tensor's largest


def has_small_leftovers(spec: StudentSpec) -> bool:
    """Whether this student's leftovers are rounded for a release."""
    return spec.precision != "fp32" and spec.family in _FAMILIES


def rounded(settings: LocalSettings, latents: Vector) -> Vector:
    """Latents of the student that is released, float32 (n,): `latents` themselves where nothing is rounded.

    Law: `rounded(s, rounded(s, x)) == rounded(s, x)`, and no code changes.
    """
    spec = settings.spec
    if not has_small_leftovers(spec):
        return latents
    named = dict(build_student(spec).named_parameters())
    parts = unflatten(torch.from_numpy(latents), list(named.values()))
    precisions = each_precision(spec.precisions, parts)
    return flatten([_rounded(*one) for one in zip(named, parts, precisions, strict=True)]).numpy()


def as_codes(values: Tensor) -> Quantized:
    """int8 codes of the shape of `values`, (n,), with one scale, (1,), for all of them."""
    quantized = int8(values.view(1, -1))
    return Quantized(quantized.codes.view(-1), quantized.scale)


def _rounded(name: str, latent: Tensor, precision: str) -> Tensor:
    if is_quantized(latent):
        quantized = QUANTIZERS[precision](latent)
        return dequantize(Quantized(quantized.codes, _to_half(quantized.scale)))
    return dequantize(as_codes(latent)) if name.endswith(IN_INT8) else _to_half(latent)


def _to_half(values: Tensor) -> Tensor:
    half = values.to(torch.float16).to(torch.float32)
    # False, too, where there is an infinity or no number.
    is_close = bool(((half - values).abs() <= _MOST_MOVED * values.abs().max()).all())
    return half if is_close else values
