"""A vision transformer's layers in operators of ONNX's opset 21, which knows neither RMSNorm nor attention.

Tokens are (n, tokens, width). Every writer takes the graph, the layer, the name of its input, and the names
of its own parameters in the graph.
"""

from torch import nn

from fedward.common.transformer import Attention, Position
from fedward.server.graph import Graph


def tokens(graph: Graph, value: str) -> str:
    """(n, width, rows, columns) -> (n, rows*columns, width)."""
    flat = graph.node("Reshape", [value, graph.integers(0, 0, -1)])
    return graph.node("Transpose", [flat], perm=[0, 2, 1])


def position(graph: Graph, layer: Position, value: str, parameters: list[str]) -> str:
    """Add each token's vector."""
    by_channel = graph.node("Reshape", [*parameters, graph.integers(layer.width, layer.tokens)])
    return graph.node("Add", [value, graph.node("Transpose", [by_channel], perm=[1, 0])])


def rms_norm(graph: Graph, layer: nn.RMSNorm, value: str, parameters: list[str]) -> str:
    """x / sqrt(mean(x^2) + eps) * weight; written with Pow, onnxruntime knows it and takes it in one pass."""
    square = graph.node("Pow", [value, graph.number(2.0)])
    mean = graph.node("ReduceMean", [square, graph.integers(-1)], keepdims=1)
    above = graph.node("Add", [mean, graph.number(float(layer.eps or 0.0))])
    normal = graph.node("Div", [value, graph.node("Sqrt", [above])])
    return graph.node("Mul", [normal, *parameters])


def linear(graph: Graph, value: str, parameters: list[str]) -> str:
    """x W^T + b on tokens; Gemm takes two axes only."""
    weight, *bias = parameters
    product = graph.node("MatMul", [value, graph.node("Transpose", [weight], perm=[1, 0])])
    return graph.node("Add", [product, *bias]) if bias else product


def attend(graph: Graph, layer: Attention, query: str, key: str, value: str) -> str:
    """softmax(q k^T / sqrt(d)) v by head; one key and one value serve all heads where there is one."""
    by_head = [_by_head(graph, layer, part) for part in (query, key, value)]
    turned = graph.node("Transpose", [by_head[1]], perm=[0, 1, 3, 2])
    scaled = graph.node("Mul", [by_head[0], graph.number(layer.of_head**-0.5)])
    weights = graph.node("Softmax", [graph.node("MatMul", [scaled, turned])], axis=-1)
    mixed = graph.node("Transpose", [graph.node("MatMul", [weights, by_head[2]])], perm=[0, 2, 1, 3])
    return graph.node("Reshape", [mixed, graph.integers(0, 0, -1)])


def _by_head(graph: Graph, layer: Attention, value: str) -> str:
    split = graph.node("Reshape", [value, graph.integers(0, 0, -1, layer.of_head)])
    return graph.node("Transpose", [split], perm=[0, 2, 1, 3])


def mean(graph: Graph, value: str) -> str:
    """(n, tokens, width) -> (n, width)."""
    return graph.node("ReduceMean", [value, graph.integers(1)], keepdims=0)
