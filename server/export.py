"""A student as an ONNX graph: standard operators, codes int8 with a separate scale, parameter names kept.

A quantised weight is stored as codes and multiplied by its scale in the graph (DequantizeLinear), so the
graph computes with exactly what training computed with. A transformer's other parameters are stored in int8
or half precision where that is the same numbers (`fedward.server.leftovers`). Each layer is written out by
hand: an exporter that traces would fold the codes into fp32 weights, and put this machine's paths into the
file.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.convolutions import WIDTHS, Residual, free_convolutions
from fedward.common.models import StudentSpec, build_student, flatten, load_vector
from fedward.common.quantization import QUANTIZERS, dequantize, each_precision, is_quantized
from fedward.common.transformer import Attention, Block, Mean, Position, Tokens
from fedward.server import group_norm_graph, transformer_graph
from fedward.server.graph import CODES, SCALE, Graph
from fedward.server.leftovers import has_small_leftovers

OPSET = 21
INPUT, OUTPUT = "images", "logits"


def _conv(graph: Graph, layer: nn.Conv2d, value: str, parameters: list[str]) -> str:
    pad = [int(side) for side in layer.padding]
    return graph.node(
        "Conv",
        [value, *parameters],
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=pad + pad,
        group=layer.groups,
    )


def _linear(graph: Graph, layer: nn.Linear, value: str, parameters: list[str]) -> str:
    return graph.node("Gemm", [value, *parameters], transB=1)


def _linear_of_tokens(graph: Graph, layer: nn.Linear, value: str, parameters: list[str]) -> str:
    return transformer_graph.linear(graph, value, parameters)


def _layer_norm(graph: Graph, layer: nn.LayerNorm, value: str, parameters: list[str]) -> str:
    return graph.node("LayerNormalization", [value, *parameters], axis=-1, epsilon=layer.eps)


def _average_pool(graph: Graph, layer: nn.AvgPool2d, value: str, parameters: list[str]) -> str:
    kernel = _pair(layer.kernel_size)
    return graph.node("AveragePool", [value], kernel_shape=kernel, strides=kernel)


def _pair(size: int | tuple[int, int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


_Writer = Callable[[Graph, Any, str, list[str]], str]
_WRITERS: dict[type[nn.Module], _Writer] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.ReLU: lambda graph, layer, value, parameters: graph.node("Relu", [value]),
    nn.AvgPool2d: _average_pool,
    nn.Flatten: lambda graph, layer, value, parameters: graph.node("Flatten", [value]),
    Tokens: lambda graph, layer, value, parameters: transformer_graph.tokens(graph, value),
    Position: transformer_graph.position,
    nn.RMSNorm: transformer_graph.rms_norm,
    nn.GELU: lambda graph, layer, value, parameters: graph.node("Gelu", [value]),
    Mean: lambda graph, layer, value, parameters: transformer_graph.mean(graph, value),
}
_WRITERS_IN_BLOCKS = {**_WRITERS, nn.Linear: _linear_of_tokens}


def _write(
    graph: Graph, module: nn.Module, prefix: str, value: str, writers: dict[type[nn.Module], _Writer]
) -> str:
    if isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            value = _write(graph, child, f"{prefix}{name}.", value, writers)
        return value
    if isinstance(module, Residual):
        return _beside(graph, module.body, f"{prefix}body.", value, writers)
    if isinstance(module, Block):
        value = _beside(graph, module.mix, f"{prefix}mix.", value, _WRITERS_IN_BLOCKS)
        return _beside(graph, module.think, f"{prefix}think.", value, _WRITERS_IN_BLOCKS)
    if isinstance(module, Attention):
        return _attention(graph, module, prefix, value)
    own = module.named_parameters(recurse=False)
    parameters = [graph.parameter(prefix + name, tensor.detach()) for name, tensor in own]
    return writers[type(module)](graph, module, value, parameters)


def _beside(
    graph: Graph, body: nn.Module, prefix: str, value: str, writers: dict[type[nn.Module], _Writer]
) -> str:
    return graph.node("Add", [value, _write(graph, body, prefix, value, writers)])


def _attention(graph: Graph, module: Attention, prefix: str, value: str) -> str:
    def of(name: str, inputs: str) -> str:
        return _write(graph, getattr(module, name), f"{prefix}{name}.", inputs, _WRITERS_IN_BLOCKS)

    parts = of("query", value), of("key", value), of("value", value)
    return of("out", transformer_graph.attend(graph, module, *parts))


def to_onnx(settings: LocalSettings, latents: Vector) -> bytes:
    """The ONNX model of Q(latents): `images` float32 (n, c, h, w) in, `logits` float32 (n, classes) out.

    Equal latents give equal bytes.
    """
    model = build_student(settings.spec)
    load_vector(model, latents)
    graph = Graph(_precisions(model, settings.spec), has_small_leftovers(settings.spec))
    writers = {**_WRITERS, nn.GroupNorm: group_norm_graph.writer(model, settings.spec)}
    last = _write(graph, model, "", INPUT, writers)
    graph.nodes[-1].output[0] = OUTPUT if graph.nodes[-1].output[0] == last else last
    shape = ["n", settings.channels, settings.height, settings.width]
    body = helper.make_graph(
        graph.nodes,
        "student",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", len(settings.classes)])],
        graph.initializers,
    )
    onnx_model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx_model.producer_name = "fedward"
    onnx.checker.check_model(onnx_model, full_check=True)
    return onnx_model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def _precisions(model: nn.Module, spec: StudentSpec) -> dict[str, str]:
    """By the parameter's name."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, each_precision(spec.precisions, parameters), strict=True))


def latents_of(onnx_bytes: bytes, settings: LocalSettings) -> Vector:
    """The inverse of `to_onnx` up to quantisation: latents that equal what the graph computes with.

    Float32 (n,). Both quantisers are idempotent, so the student that starts from them is the released one.

    Raises:
        KeyError, ValueError: the graph is not one of this student.
    """
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(onnx_bytes).graph.initializer
    }
    model, parts = build_student(settings.spec), []
    precisions = _precisions(model, settings.spec)
    for name, parameter in model.named_parameters():
        is_code = precisions[name] != "fp32"
        if is_code or (parameter.dim() == 1 and name + CODES in stored):
            value = _dequantized(stored[name + CODES], stored[name + SCALE])
        else:
            value = stored[name]
        if value.shape != tuple(parameter.shape):
            raise ValueError(f"{name} has shape {value.shape} in the release, {tuple(parameter.shape)} here")
        latent = torch.from_numpy(value.astype(np.float32))
        if is_code and not _is_of(latent, stored[name + CODES], precisions[name]):
            raise ValueError(f"{name} is not {precisions[name]} in the release")
        parts.append(latent)
    return flatten(parts).numpy()


def widths_of(onnx_bytes: bytes, spec: StudentSpec) -> tuple[int, ...] | None:
    """The widths of the student in an exported graph, as it may have been pruned; None for its own.

    Raises:
        KeyError, ValueError: the graph is not one of this network.
    """
    if spec.family not in WIDTHS:
        return None
    stored = {tensor.name: tensor for tensor in onnx.load_from_string(onnx_bytes).graph.initializer}
    names = [name + ".weight" for name in free_convolutions(build_student(spec))]
    found = [stored[name if name in stored else name + CODES] for name in names]
    widths = tuple(int(tensor.dims[0]) for tensor in found)
    return None if widths == WIDTHS[spec.family] else widths


def bits_of(onnx_bytes: bytes, spec: StudentSpec) -> tuple[int, ...] | None:
    """Of each weight of an exported int8 student, as it may have been given fewer; None where all have 8.

    Read off the largest code, which every quantiser uses; a weight of zeros has 8.

    Raises:
        KeyError, ValueError: the graph is not one of this network.
    """
    if spec.precision != "int8":
        return None
    stored = {tensor.name: tensor for tensor in onnx.load_from_string(onnx_bytes).graph.initializer}
    weights = [name for name, value in build_student(spec).named_parameters() if is_quantized(value)]
    largest = [int(np.abs(numpy_helper.to_array(stored[name + CODES]).astype(int)).max()) for name in weights]
    bits = tuple({1: 2, 7: 4}.get(code, 8) for code in largest)
    return None if set(bits) <= {8} else bits


def _is_of(latent: torch.Tensor, codes: np.ndarray, precision: str) -> bool:
    """Whether quantising gives the same weight by the same codes: int8 keeps a ternary weight's values."""
    again = QUANTIZERS[precision](latent)
    return np.array_equal(again.codes.numpy(), codes) and torch.equal(dequantize(again), latent)


def _dequantized(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.asarray(codes * scale.astype(np.float32).reshape(-1, *[1] * (codes.ndim - 1)), np.float32)
