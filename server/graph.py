"""An ONNX graph in the making: nodes and initialisers, weights as codes with their scale apart."""

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from fedward.common.quantization import QUANTIZERS, Quantized, dequantize
from fedward.server.leftovers import IN_INT8, as_codes

CODES, SCALE = ".codes", ".scale"


class Graph:
    """Nodes and initialisers so far.

    With `is_small`, what is not quantised is stored in int8 or in half precision where that is the same
    numbers (`fedward.server.leftovers`), and made float32 in the graph.

    Args:
        precisions: fp32 or a key of `QUANTIZERS`, by the parameter's name.
    """

    def __init__(self, precisions: dict[str, str], is_small: bool = False) -> None:
        """Begin empty."""
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._precisions, self._is_small = precisions, is_small
        self._value = 0

    def node(self, operator: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Append a node and return the name of what it puts out."""
        self._value += 1
        name = output or f"v{self._value}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """A stored tensor, by name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def integers(self, *values: int) -> str:
        """What an operator takes as a shape or as axes: int64 (values,), a node and no stored tensor."""
        return self.node("Constant", [], value=numpy_helper.from_array(np.array(values, np.int64)))

    def number(self, value: float) -> str:
        """A float32 scalar, likewise."""
        return self.node("Constant", [], value=numpy_helper.from_array(np.array(value, np.float32)))

    def parameter(self, name: str, latent: torch.Tensor) -> str:
        """The parameter as the graph computes with it; codes and scale when it is quantised."""
        if self._precisions[name] != "fp32":
            return self._codes(name, QUANTIZERS[self._precisions[name]](latent))
        if self._is_small and name.endswith(IN_INT8):
            return self._small(name, latent)
        return self._real(name, latent.numpy())

    def _codes(self, name: str, quantized: Quantized) -> str:
        codes = self.constant(name + CODES, quantized.codes.numpy())
        scale = self._real(name + SCALE, quantized.scale.numpy())
        return self.node("DequantizeLinear", [codes, scale], name, axis=0)

    def _small(self, name: str, latent: torch.Tensor) -> str:
        """A tensor as codes with one scale, fp32 since a bias may be tiny, where that is the same numbers."""
        quantized = as_codes(latent)
        if not torch.equal(dequantize(quantized), latent):
            return self.constant(name, latent.numpy())
        codes = self.constant(name + CODES, quantized.codes.numpy())
        scale = self.constant(name + SCALE, quantized.scale.view(()).numpy())
        return self.node("DequantizeLinear", [codes, scale], name)

    def _real(self, name: str, value: np.ndarray) -> str:
        """A stored tensor of float32, or of float16 where that is the same numbers."""
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not self._is_small or not np.array_equal(half.astype(np.float32), value):
            return self.constant(name, value)
        return self.node("Cast", [self.constant(name, half)], to=TensorProto.FLOAT)
