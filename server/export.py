"""A student as an ONNX graph: standard operators, codes int8 with a separate scale, parameter names kept.

A quantised weight is stored as codes and multiplied by its scale in the graph (DequantizeLinear), so the
graph computes with exactly what training computed with. Each layer is written out by hand: an exporter that
traces would fold the codes into fp32 weights, and put this machine's paths into the file.
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
from fedward.common.models import Residual, build_student, flatten, unflatten
from fedward.common.quantization import QUANTIZERS, dequantize, is_quantized

OPSET = 21
INPUT, OUTPUT = "images", "logits"
CODES, SCALE = ".codes", ".scale"


class _Graph:
    """Nodes and initialisers in the making; `value` counts intermediate names."""

    def __init__(self, precision: str) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._precision = precision
        self._value = 0

    def node(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        self._value += 1
        name = output or f"v{self._value}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def parameter(self, name: str, latent: torch.Tensor) -> str:
        """The parameter as the graph computes with it; codes and scale when it is quantised."""
        if self._precision == "fp32" or not is_quantized(latent):
            return self.constant(name, latent.numpy())
        quantized = QUANTIZERS[self._precision](latent)
        codes = self.constant(name + CODES, quantized.codes.numpy())
        scale = self.constant(name + SCALE, quantized.scale.numpy())
        return self.node("DequantizeLinear", [codes, scale], name, axis=0)


def _conv(graph: _Graph, layer: nn.Conv2d, value: str, parameters: list[str]) -> str:
    pad = [int(side) for side in layer.padding]
    return graph.node(
        "Conv",
        [value, *parameters],
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=pad + pad,
        group=layer.groups,
    )


def _linear(graph: _Graph, layer: nn.Linear, value: str, parameters: list[str]) -> str:
    return graph.node("Gemm", [value, *parameters], transB=1)


def _group_norm(graph: _Graph, layer: nn.GroupNorm, value: str, parameters: list[str]) -> str:
    return graph.node(
        "GroupNormalization", [value, *parameters], num_groups=layer.num_groups, epsilon=layer.eps
    )


def _average_pool(graph: _Graph, layer: nn.AvgPool2d, value: str, parameters: list[str]) -> str:
    kernel = _pair(layer.kernel_size)
    return graph.node("AveragePool", [value], kernel_shape=kernel, strides=kernel)


def _pair(size: int | tuple[int, int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


_WRITERS: dict[type[nn.Module], Callable[[_Graph, Any, str, list[str]], str]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.GroupNorm: _group_norm,
    nn.ReLU: lambda graph, layer, value, parameters: graph.node("Relu", [value]),
    nn.AvgPool2d: _average_pool,
    nn.Flatten: lambda graph, layer, value, parameters: graph.node("Flatten", [value]),
}


def _write(graph: _Graph, module: nn.Module, prefix: str, value: str) -> str:
    if isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            value = _write(graph, child, f"{prefix}{name}.", value)
        return value
    if isinstance(module, Residual):
        return graph.node("Add", [value, _write(graph, module.body, f"{prefix}body.", value)])
    own = module.named_parameters(recurse=False)
    parameters = [graph.parameter(prefix + name, tensor.detach()) for name, tensor in own]
    return _WRITERS[type(module)](graph, module, value, parameters)


def to_onnx(settings: LocalSettings, latents: Vector) -> bytes:
    """The ONNX model of Q(latents): `images` float32 (n, c, h, w) in, `logits` float32 (n, classes) out.

    Equal latents give equal bytes.
    """
    model = build_student(settings.spec)
    parts = unflatten(torch.from_numpy(latents), list(model.parameters()))
    with torch.no_grad():
        for parameter, latent in zip(model.parameters(), parts, strict=True):
            parameter.copy_(latent)
    graph = _Graph(settings.spec.precision)
    last = _write(graph, model, "", INPUT)
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
    parts, precision = [], settings.spec.precision
    for name, parameter in build_student(settings.spec).named_parameters():
        if precision == "fp32" or not is_quantized(parameter):
            value = stored[name]
        else:
            value = _dequantized(stored[name + CODES], stored[name + SCALE])
        if value.shape != tuple(parameter.shape):
            raise ValueError(f"{name} has shape {value.shape} in the release, {tuple(parameter.shape)} here")
        latent = torch.from_numpy(value.astype(np.float32))
        if not _is_of(latent, stored.get(name + CODES), precision):
            raise ValueError(f"{name} is not {precision} in the release")
        parts.append(latent)
    return flatten(parts).numpy()


def _is_of(latent: torch.Tensor, codes: np.ndarray | None, precision: str) -> bool:
    """Whether quantising gives the same weight by the same codes: int8 keeps a ternary weight's values."""
    if codes is None:
        return True
    again = QUANTIZERS[precision](latent)
    return np.array_equal(again.codes.numpy(), codes) and torch.equal(dequantize(again), latent)


def _dequantized(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.asarray(codes * scale.reshape(-1, *[1] * (codes.ndim - 1)), np.float32)
