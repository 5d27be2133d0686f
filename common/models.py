"""The students: small networks with exact per-sample gradients.

Only layers whose per-sample gradient is exact are used: convolution, linear, GroupNorm (Wu & He 2018), and
those of `fedward.common.transformer`. No BatchNorm, no learned activation range, no running statistic: each
would read private data without noise. Shapes: images (n, channels, height, width) float32 in [-1, 1];
logits (n, classes).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedward.common.errors import SettingRefused, UnknownName
from fedward.common.randomness import KeyedGenerator
from fedward.common.transformer import Size, vision_transformer

PRECISIONS = ("ternary", "int8", "fp32")
FAMILIES = ("cnn", "depthwise", "embed", "vit")
_TRANSFORMERS = {  # parameters at 28 by 28 grey pixels and two classes
    "vit": Size(width=96, depth=4, heads=3, expansion=2),  # 0.30 million
    "vit-s": Size(width=128, depth=5, heads=4, expansion=4),  # 1.0 million
    "vit-m": Size(width=192, depth=6, heads=3, expansion=4),  # 2.68 million
    "vit-l": Size(width=320, depth=7, heads=5, expansion=4),  # 8.65 million
}
_TRANSFORMERS |= {f"{name}-mq": replace(size, is_multi_query=True) for name, size in _TRANSFORMERS.items()}
NETWORKS = ("cnn", "depthwise", "embed", *_TRANSFORMERS)
STUDENTS = tuple(f"{precision}-{network}" for precision in PRECISIONS for network in NETWORKS)
SMALLEST = tuple(f"{precision}-{family}" for precision in PRECISIONS for family in FAMILIES)  # of each kind
TRAINED = ("all", "head")
EMBEDDING = 128  # values that the head of an `embed` student reads
MINIMUM_SIDE = 16
MAXIMUM_SIDE = 512


@dataclass(frozen=True)
class StudentSpec:
    """What defines a student's shapes: `name` of `STUDENTS`, image shape and number of classes."""

    name: str
    channels: int
    height: int
    width: int
    classes: int

    @property
    def precision(self) -> str:
        """ternary, int8 or fp32."""
        return self.name.split("-", 1)[0]

    @property
    def network(self) -> str:
        """One of `NETWORKS`: what is left of the name without the precision."""
        return self.name.split("-", 1)[1]

    @property
    def family(self) -> str:
        """One of `FAMILIES`: a network without its size."""
        return self.network.split("-", 1)[0]


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        """Wrap `body`, which keeps its input's shape."""
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        out: Tensor = x + self.body(x)
        return out


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    # No bias: GroupNorm's own shift follows.
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(min(8, outputs // 4), outputs), nn.ReLU())


def _positions(channels: int, spec: StudentSpec) -> tuple[list[nn.Module], int]:
    """Layers that pool the map at a quarter of the image's side to about 7 by 7 and flatten it, and how many
    values come out.

    What follows decides on position and channel.
    A mean over all positions costs 15 points of validation AUC at epsilon 3: its features share one large
    common direction, which takes up the clip.
    """
    sides = [-(-side // 4) for side in (spec.height, spec.width)]
    kernel = [max(1, round(side / 7)) for side in sides]
    pooled = [side // step for side, step in zip(sides, kernel, strict=True)]
    pool = [nn.AvgPool2d((kernel[0], kernel[1]))] if max(kernel) > 1 else []
    return [*pool, nn.Flatten()], channels * pooled[0] * pooled[1]


def _head(channels: int, spec: StudentSpec) -> list[nn.Module]:
    layers, values = _positions(channels, spec)
    return [*layers, nn.Linear(values, spec.classes)]


def _cnn(spec: StudentSpec) -> nn.Sequential:
    body = [_conv(spec.channels, 32, 3, stride=2), _conv(32, 64, 3, stride=2), _conv(64, 64, 3)]
    return nn.Sequential(*body, *_head(64, spec))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, inputs, 3, stride, groups=inputs), _conv(inputs, outputs, 1))


def _depthwise(spec: StudentSpec) -> nn.Sequential:
    body = [
        _conv(spec.channels, 32, 3, stride=2),
        _separable(32, 96, 2),
        Residual(_separable(96, 96, 1)),
        Residual(_separable(96, 96, 1)),
        Residual(_separable(96, 96, 1)),
        _separable(96, 128, 1),
    ]
    return nn.Sequential(*body, *_head(128, spec))


def _embed(spec: StudentSpec) -> nn.Sequential:
    """A body whose embedding is normalised and then read by a small head: made to have its head alone trained
    under privacy (`TRAINED`), behind a body that is distilled on public images.
    """
    body = [_conv(spec.channels, 32, 3, stride=2), _conv(32, 64, 3, stride=2)]
    body += [nn.Sequential(Residual(_conv(64, 64, 3)), Residual(_conv(64, 64, 3)))]
    layers, values = _positions(64, spec)
    embedding = nn.Linear(values, EMBEDDING), nn.LayerNorm(EMBEDDING)
    return nn.Sequential(*body, *layers, *embedding, nn.Linear(EMBEDDING, spec.classes))


def _transformer(spec: StudentSpec) -> nn.Sequential:
    size = _TRANSFORMERS[spec.network]
    return vision_transformer(spec.channels, spec.height, spec.width, spec.classes, size)


_BUILDERS = {"cnn": _cnn, "depthwise": _depthwise, "embed": _embed, "vit": _transformer}


def build_student(spec: StudentSpec) -> nn.Sequential:
    """The plain network of `spec`, with undefined weights: see `initialise`.

    Raises:
        UnknownName: the student does not exist.
        SettingRefused: an image shape or number of classes that no student takes.
    """
    if spec.name not in STUDENTS:
        raise UnknownName(f"There is no student {spec.name!r}; choose one of {', '.join(STUDENTS)}.")
    check_shape(spec)
    return _BUILDERS[spec.family](spec)


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
