"""GroupNorm in a graph: ONNX' own operator, or where it has one group an operator that is faster."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedward.common.models import StudentSpec
from fedward.server.graph import Graph

_Sides = dict[nn.Module, tuple[int, int]]


def writer(model: nn.Module, spec: StudentSpec) -> Callable[[Graph, nn.GroupNorm, str, list[str]], str]:
    """(graph, layer, value, parameters) -> the normalised value, for the norms of `model`."""
    sides = _sides_behind_norms(model, spec)

    def write(graph: Graph, layer: nn.GroupNorm, value: str, parameters: list[str]) -> str:
        if layer.num_groups == 1:
            return _of_one_group(graph, layer, value, parameters, sides[layer])
        return graph.node(
            "GroupNormalization", [value, *parameters], num_groups=layer.num_groups, epsilon=layer.eps
        )

    return write


def _sides_behind_norms(model: nn.Module, spec: StudentSpec) -> _Sides:
    """(height, width) of the map behind each norm of one group."""
    sides: _Sides = {}

    def remember(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sides[layer] = (output.shape[2], output.shape[3])

    norms = [one for one in model.modules() if isinstance(one, nn.GroupNorm) and one.num_groups == 1]
    handles = [norm.register_forward_hook(remember) for norm in norms]
    if norms:
        with torch.no_grad():
            model(torch.zeros(1, spec.channels, spec.height, spec.width))
    for handle in handles:
        handle.remove()
    return sides


def _of_one_group(
    graph: Graph, layer: nn.GroupNorm, value: str, parameters: list[str], sides: tuple[int, int]
) -> str:
    """A norm over all channels at once: one LayerNormalization, where onnxruntime takes GroupNormalization
    apart into a dozen steps.

    Scale and shift by channel are spread over the map, which onnxruntime does once, when it loads the graph.
    """
    by_channel = [graph.node("Reshape", [name, graph.integers(-1, 1, 1)]) for name in parameters]
    shape = graph.integers(layer.num_channels, *sides)
    spread = [graph.node("Expand", [name, shape]) for name in by_channel]
    return graph.node("LayerNormalization", [value, *spread], axis=1, epsilon=layer.eps)
