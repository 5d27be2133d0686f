"""What a student computes for one image, counted in multiply-adds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedward.common.models import StudentSpec, build_student
from fedward.common.transformer import Attention


def multiply_adds(spec: StudentSpec) -> int:
    """Multiply-adds of one image's forward pass: convolutions, linear layers and attention's two products.

    Norms, activations, poolings and sums are left out, as is usual; together they are a few per cent.

    Raises:
        UnknownName, SettingRefused: as `build_student`.
    """
    return _summed(spec, _of_layer)


def map_values(spec: StudentSpec) -> int:
    """Values of all maps that convolutions put out for one image: what norms and activations then go through.

    Raises:
        UnknownName, SettingRefused: as `build_student`.
    """
    return _summed(spec, lambda layer, _, output: output.numel() if isinstance(layer, nn.Conv2d) else 0)


def _summed(spec: StudentSpec, of_layer: Callable[[Any, Tensor, Tensor], int]) -> int:
    """The sum of `of_layer(layer, input, output)` in the forward pass of one image."""
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(of_layer(layer, inputs[0], output))

    with torch.device("meta"):  # shapes only: no weight is drawn
        model = build_student(spec)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | Attention):
            layer.register_forward_hook(count)
    model(torch.empty(1, spec.channels, spec.height, spec.width, device="meta"))
    return sum(counts)


def _of_layer(layer: Any, inputs: Tensor, output: Tensor) -> int:
    if isinstance(layer, Attention):
        tokens = inputs.shape[1]
        return 2 * tokens * tokens * layer.width  # its projections are layers of their own
    return output.numel() * int(layer.weight[0].numel())
