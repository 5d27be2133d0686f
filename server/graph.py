"""An ONNX graph in the making: nodes and initialisers, weights as codes with their scale apart."""

from typing import Any

import numpy as np
import torch
from onnx import helper, numpy_helper

from fedward.common.quantization import QUANTIZERS

CODES, SCALE = ".codes", ".scale"


class Graph:
    """Nodes and initialisers so far.

    Args:
        precisions: fp32 or a key of `QUANTIZERS`, by the parameter's name.
    """

    def __init__(self, precisions: dict[str, str]) -> None:
        """Begin empty."""
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._precisions = precisions
        self._value = 0

    def node(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of what it puts out."""
        self._value += 1
        name = output or f"v{self._value}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """A stored tensor, by name."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        """What an operator takes as a shape or as axes: int64 (values,), a node and no stored tensor."""
        return self.node("Constant", [], value=numpy_helper.from_array(np.array(values, np.int64)))

    def number(self, value: float) -> str:
        """A float32 scalar, likewise."""
        return self.node("Constant", [], value=numpy_helper.from_array(np.array(value, np.float32)))

    def parameter(self, name: str, latent: torch.Tensor) -> str:
        """The parameter as the graph computes with it; codes and scale when it is quantised."""
        if self._precisions[name] == "fp32":
            return self.constant(name, latent.numpy())
        quantized = QUANTIZERS[self._precisions[name]](latent)
        codes = self.constant(name + CODES, quantized.codes.numpy())
        scale = self.constant(name + SCALE, quantized.scale.numpy())
        return self.node("DequantizeLinear", [codes, scale], name, axis=0)
