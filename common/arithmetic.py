"""What a student computes for one image, counted in multiply-adds."""

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
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(_of_layer(layer, inputs[0], output))

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
