"""The students: small networks with exact per-sample gradients.

Only layers whose per-sample gradient is exact are used: convolution, linear, GroupNorm (Wu & He 2018), and
those of `fedward.common.transformer`. No BatchNorm, no learned activation range, no running statistic: each
would read private data without noise. Shapes: images (n, channels, height, width) float32 in [-1, 1];
logits (n, classes).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedward.common.convolutions import CONVOLUTIONAL, STEP, WIDTHS, Pictures, convolutional
from fedward.common.errors import SettingRefused, UnknownName
from fedward.common.quantization import BY_BITS, Precision, is_quantized
from fedward.common.randomness import KeyedGenerator
from fedward.common.transformer import Size, vision_transformer

PRECISIONS = ("ternary", "int8", "fp32")
FAMILIES = (*CONVOLUTIONAL, "vit")
_TRANSFORMERS = {  # parameters at 28 by 28 grey pixels and two classes
    "vit": Size(width=96, depth=4, heads=3, expansion=2),  # 0.30 million
    "vit-s": Size(width=128, depth=5, heads=4, expansion=4),  # 1.0 million
    "vit-m": Size(width=192, depth=6, heads=3, expansion=4),  # 2.68 million
    "vit-l": Size(width=320, depth=7, heads=5, expansion=4),  # 8.65 million
}
_TRANSFORMERS |= {f"{name}-mq": replace(size, is_multi_query=True) for name, size in _TRANSFORMERS.items()}
NETWORKS = (*CONVOLUTIONAL, *_TRANSFORMERS)
STUDENTS = tuple(f"{precision}-{network}" for precision in PRECISIONS for network in NETWORKS)
SMALLEST = tuple(f"{precision}-{family}" for precision in PRECISIONS for family in FAMILIES)  # of each kind
TRAINED = ("all", "head")
MINIMUM_SIDE = 16
MAXIMUM_SIDE = 512


@dataclass(frozen=True)
class StudentSpec:
    """What defines a student's shapes: `name` of `STUDENTS`, image shape and number of classes.

    Attributes:
        widths: of `fedward.common.convolutions`, for a pruned student; None for the network's own.
        bits: of each weight that is quantised, in order: 2 (ternary), 4 or 8; None for what the name says.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: int
    widths: tuple[int, ...] | None = None
    bits: tuple[int, ...] | None = None

    @property
    def precision(self) -> str:
        """ternary, int8 or fp32."""
        return self.name.split("-", 1)[0]

    @property
    def precisions(self) -> Precision:
        """What its weights are quantised to: all alike, or each by its own bits."""
        return self.precision if self.bits is None else tuple(BY_BITS[bits] for bits in self.bits)

    @property
    def network(self) -> str:
        """One of `NETWORKS`: what is left of the name without the precision."""
        return self.name.split("-", 1)[1]

    @property
    def family(self) -> str:
        """One of `FAMILIES`: a network without its size."""
        return self.network.split("-", 1)[0]


def build_student(spec: StudentSpec) -> nn.Sequential:
    """The plain network of `spec`, with undefined weights: see `initialise`.

    Raises:
        UnknownName: the student does not exist.
        SettingRefused: an image shape or number of classes that no student takes.
    """
    if spec.name not in STUDENTS:
        raise UnknownName(f"There is no student {spec.name!r}; choose one of {', '.join(STUDENTS)}.")
    check_shape(spec)
    if spec.family in CONVOLUTIONAL:
        pictures = Pictures(spec.channels, spec.height, spec.width, spec.classes)
        return convolutional(spec.family, pictures, spec.widths)
    size = _TRANSFORMERS[spec.network]
    return vision_transformer(spec.channels, spec.height, spec.width, spec.classes, size)


def check_shape(spec: StudentSpec) -> None:
    """Refuse what no student takes, before anything is built.

    Raises:
        SettingRefused: an image shape or number of classes that no student takes.
    """
    numbers = (spec.channels, spec.height, spec.width, spec.classes)
    if any(type(number) is not int for number in numbers):
        raise SettingRefused(f"A student's shape is four whole numbers, not {numbers}.")
    if spec.channels not in (1, 3) or spec.classes < 2:
        raise SettingRefused(
            f"A student takes 1 or 3 channels and at least 2 classes, not {spec.channels} and {spec.classes}."
        )
    if not all(MINIMUM_SIDE <= side <= MAXIMUM_SIDE for side in (spec.height, spec.width)):
        raise SettingRefused(
            f"A student takes images of {MINIMUM_SIDE} to {MAXIMUM_SIDE} pixels a side, "
            f"not {spec.height} by {spec.width}; resize them."
        )
    if spec.widths is not None:
        _check_widths(spec.family, spec.widths)
    if spec.bits is not None:
        _check_bits(spec)


def quantized_weights(spec: StudentSpec) -> int:
    """How many weights of the student are quantised, each with its own bits."""
    with torch.device("meta"):  # shapes only
        return sum(map(is_quantized, build_student(replace(spec, bits=None)).parameters()))


def _check_bits(spec: StudentSpec) -> None:
    if spec.precision != "int8":
        raise SettingRefused(f"Weights of fewer than 8 bits each are for an int8 student, not {spec.name}.")
    bits, count = spec.bits, quantized_weights(spec)
    if not (isinstance(bits, tuple) and len(bits) == count and all(map(_are_bits, bits))):
        raise SettingRefused(
            f"The bits of this {spec.name} are {count} numbers, each 2, 4 or 8; not {bits!r:.200}."
        )


def _are_bits(bits: object) -> bool:
    return type(bits) is int and bits in BY_BITS


def _check_widths(family: str, widths: object) -> None:
    own = WIDTHS.get(family)
    if own is None:
        raise SettingRefused(f"A student of the family {family} has no widths to choose: leave them out.")
    if not (isinstance(widths, tuple) and len(widths) == len(own) and all(map(_fits, widths, own))):
        raise SettingRefused(
            f"The widths of a {family} student are {len(own)} multiples of {STEP}, none above its own, "
            f"{list(own)}; not {widths!r:.200}."
        )


def _fits(width: object, own: int) -> bool:
    return type(width) is int and STEP <= width <= own and width % STEP == 0


@torch.no_grad()
def initialise(model: nn.Module, generator: KeyedGenerator) -> None:
    """He initialisation (He et al. 2015) of every weight by the keyed generator; norms start at identity."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        fan_in = parameter[0].numel()
        draws = generator.derive("init", name).normal(parameter.numel()) * (2.0 / fan_in) ** 0.5
        parameter.copy_(torch.from_numpy(draws).to(parameter.dtype).view_as(parameter))


def split(model: nn.Sequential, trained: str) -> tuple[nn.Sequential, nn.Sequential]:
    """`model` as (what stays as it is, what a study trains): layers in a row, shared with `model`.

    Args:
        trained: of `TRAINED`; head is the last layer, whose values end the packed vector.
    """
    first = len(model) - 1 if trained == "head" else 0
    layers = list(model)
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:])


def frozen_count(spec: StudentSpec, trained: str) -> int:
    """How many values at the front of the packed vector a study leaves alone; updates hold the others."""
    return parameter_count(split(build_student(spec), trained)[0])


def parameter_count(model: nn.Module) -> int:
    """Number of values in the model's packed vector."""
    return sum(parameter.numel() for parameter in model.parameters())


def flatten(tensors: list[Tensor]) -> Tensor:
    """One float32 vector of all tensors, in order. Shape: (sum of sizes,)."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).to(torch.float32)


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flatten`: views of `vector` with the shapes of `like`.

    Raises:
        ValueError: the vector has another length.
    """
    sizes = [tensor.numel() for tensor in like]
    if vector.numel() != sum(sizes):
        raise ValueError(f"a vector of {vector.numel()} values does not fill {sum(sizes)} parameters")
    return [part.view_as(tensor) for part, tensor in zip(torch.split(vector, sizes), like, strict=True)]


@torch.no_grad()
def load_vector(model: nn.Module, vector: np.ndarray) -> None:
    """Write a packed vector, float32 (n,), into the model's parameters as it is.

    Raises:
        ValueError: the vector has another length.
    """
    parts = unflatten(torch.from_numpy(vector), list(model.parameters()))
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.copy_(part)
