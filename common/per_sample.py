"""Exact per-sample gradients from one backward pass, for the students' layers.

Parameters do not require gradients; autograd is asked for the gradient of the summed loss with respect to
the layers' outputs only, and each layer's per-sample weight gradient follows from its input and that
gradient (Goodfellow 2015, arXiv 1510.01799; Rochette et al. 2019, arXiv 1912.06015 for convolutions).
The result feeds Opacus' DPOptimizer as ``parameter.grad_sample`` (grad_sample_mode "no_op").

A privacy unit shows the network `views` records a step (augmentations, or several images of one patient):
rows i*views .. (i+1)*views-1 belong to unit i, and their gradients are averaged before anything is clipped
(augmentation multiplicity, De et al. 2022, arXiv 2204.13650).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedward.common.allocator import keep_freed_memory
from fedward.common.errors import SettingRefused
from fedward.common.transformer import Position

PART_BYTES = 64 << 20  # of per-unit gradients that are held at once
_ONCE = "Per-sample gradients need each layer to be used exactly once a forward pass."
# (layer, input (m, ...), gradient of the output (m, ...), units) -> one gradient (units, *shape) a parameter
_Rule = Callable[[Any, Tensor, Tensor, int], list[Tensor]]


def _by_unit(rows: Tensor, units: int) -> Tensor:
    """(units*views, a, positions) -> (units, a, views*positions): a unit's views become more positions."""
    views = rows.shape[0] // units
    if views == 1:
        return rows
    return rows.view(units, views, *rows.shape[1:]).transpose(1, 2).flatten(2)


def _conv2d(layer: nn.Conv2d, inputs: Tensor, grad: Tensor, units: int) -> list[Tensor]:
    weight = _conv2d_rule(layer)(layer, inputs, grad, units)
    gradients = [weight.view(units, *layer.weight.shape)]
    return gradients if layer.bias is None else [*gradients, _by_unit(grad.flatten(2), units).sum(dim=2)]


def _conv2d_rule(layer: nn.Conv2d) -> Callable[[nn.Conv2d, Tensor, Tensor, int], Tensor]:
    """Measured on a CPU: patches win for dense 1x1 kernels, groups elsewhere."""
    return _by_patches if layer.groups == 1 and layer.kernel_size == (1, 1) else _by_groups


def _by_groups(layer: nn.Conv2d, inputs: Tensor, grad: Tensor, units: int) -> Tensor:
    """Every unit a group of one large convolution, whose weight gradient is then the units' own."""
    rows, outer = _side_by_side(inputs, units), _side_by_side(grad, units)
    # Only its shape counts. `torch.nn.grad.conv2d_weight` expands one value to that shape instead, and the
    # result then takes a layout that has to be copied.
    weight = grad.new_empty(units * layer.out_channels, *layer.weight.shape[1:])
    groups, wanted = units * layer.groups, (False, True, False)
    gradient: Tensor = torch.ops.aten.convolution_backward(
        outer,
        rows,
        weight,
        None,
        layer.stride,
        _padding(layer),
        layer.dilation,
        False,
        (0, 0),
        groups,
        wanted,
    )[1]
    return gradient


def _side_by_side(rows: Tensor, units: int) -> Tensor:
    """(units*views, c, h, w) -> (views, units*c, h, w)."""
    views = rows.shape[0] // units
    return rows.view(units, views, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)


def _by_patches(layer: nn.Conv2d, inputs: Tensor, grad: Tensor, units: int) -> Tensor:
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and _padding(layer) == (0, 0):
        patches = inputs.flatten(2)
    else:
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)
    outputs, patches = _by_unit(grad.flatten(2), units), _by_unit(patches, units)
    return torch.bmm(outputs, patches.transpose(1, 2))  # (u, out, in*k*k)


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise SettingRefused("Per-sample gradients of a convolution need zero padding given in numbers.")
    return layer.padding


def _linear(layer: nn.Linear, inputs: Tensor, grad: Tensor, units: int) -> list[Tensor]:
    if inputs.dim() == 2 and units == len(inputs):
        weight = grad[:, :, None] * inputs[:, None, :]  # one outer product a unit, three times bmm's speed
        return [weight] if layer.bias is None else [weight, grad]
    rows, outputs = inputs.reshape(units, -1, layer.in_features), grad.reshape(units, -1, layer.out_features)
    weight = torch.bmm(outputs.transpose(1, 2), rows)
    return [weight] if layer.bias is None else [weight, outputs.sum(dim=1)]


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, grad: Tensor, units: int) -> list[Tensor]:
    rows, channels, positions = len(inputs), inputs.shape[1], inputs[0, 0].numel()
    grouped = rows, channels, positions, layer.num_groups
    mean, scale = torch.native_group_norm(inputs, None, None, *grouped, layer.eps)[1:]
    # One record whose channels are all rows' channels: the weight's gradient is then each row's own.
    together = 1, rows * channels, positions, rows * layer.num_groups
    by_row = torch.ops.aten.native_group_norm_backward(
        grad.contiguous(), inputs, mean, scale, grad.new_ones(rows * channels), *together, (False, True, True)
    )[1:]
    gradients = [part.view(units, -1, channels) for part in by_row]
    gradients = [part[:, 0] if rows == units else part.sum(dim=1) for part in gradients]
    return gradients[:1] if layer.bias is None else gradients


def _rms_norm(layer: nn.RMSNorm, inputs: Tensor, grad: Tensor, units: int) -> list[Tensor]:
    normalised = F.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return [_summed(layer, grad * normalised, units)]


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, grad: Tensor, units: int) -> list[Tensor]:
    weight = _summed(layer, grad * F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps), units)
    return [weight] if layer.bias is None else [weight, _summed(layer, grad, units)]


def _summed(layer: nn.RMSNorm | nn.LayerNorm, values: Tensor, units: int) -> Tensor:
    """The sum of a unit's normalised vectors, (units, *normalised shape)."""
    shape = tuple(layer.normalized_shape)
    return values.reshape(units, -1, *shape).sum(dim=1)


def _position(layer: Position, inputs: Tensor, grad: Tensor, units: int) -> list[Tensor]:
    by_token = grad.reshape(units, -1, layer.tokens, layer.width).sum(dim=1)
    return [by_token.transpose(1, 2).flatten(1)]


RULES: dict[type[nn.Module], _Rule] = {
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.GroupNorm: _group_norm,
    nn.RMSNorm: _rms_norm,
    nn.LayerNorm: _layer_norm,
    Position: _position,
}


def parametric_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that own parameters, in `model.parameters()` order.

    Raises:
        SettingRefused: a layer without a rule here (attention as one block, a bare parameter), one that mixes
            the records of a batch or remembers them (BatchNorm, range observers), a parameter in two layers.
    """
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) or any(True for _ in layer.buffers(recurse=False)):
            raise SettingRefused(
                f"A layer of type {type(layer).__name__} carries records' values to others, which no clip "
                "bounds; use GroupNorm and fixed ranges."
            )
    layers = [layer for layer in model.modules() if any(True for _ in layer.parameters(recurse=False))]
    for layer in layers:
        if type(layer) not in RULES:
            raise SettingRefused(
                f"There is no exact per-sample gradient for a layer of type {type(layer).__name__}; "
                f"use {', '.join(sorted(kind.__name__ for kind in RULES))}."
            )
    owned = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    if len(set(owned)) != len(owned):
        raise SettingRefused("Two layers share a parameter; per-sample gradients need one layer for each.")
    return layers


class _Passage:
    """What went into a layer and came out of it; detached tensors share the version counter."""

    def __init__(self, inputs: Tensor, output: Tensor) -> None:
        self.inputs, self.output = inputs, output
        self._versions = (inputs._version, output._version)

    @property
    def was_overwritten(self) -> bool:
        return (self.inputs._version, self.output._version) != self._versions


class PerSampleGradients:
    """Computes per-unit gradients of a model built of known layers.

    The parameters' ``requires_grad`` flags are off during the forward pass and on afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        """Check the layers of `model`.

        Raises:
            SettingRefused: a layer without an exact rule.
        """
        self._model = model
        keep_freed_memory()
        self._layers = parametric_layers(model)
        self._parameters = list(model.parameters())

    def _track(self, wanted: bool) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(wanted)

    def compute(self, images: Tensor, loss: Callable[[Tensor], Tensor], views: int = 1) -> list[Tensor]:
        """Gradients by unit, one tensor (units, *parameter shape) a parameter, in parameter order.

        Args:
            images: (units * views, channels, height, width).
            loss: logits (units * views, classes) -> loss of each row, (units * views,).
            views: rows of a unit; their gradients are averaged.

        Raises:
            SettingRefused: the forward pass uses a layer not exactly once, or changes a layer's input or
                output in place.
            ValueError: the rows do not fill whole units, or the loss is not one value a row.
        """
        parts = list(self.in_parts(images, loss, views))
        if len(parts) == 1:
            return parts[0]
        empty = [parameter.new_zeros(0, *parameter.shape) for parameter in self._parameters]
        return [torch.cat(same) for same in zip(*parts, strict=True)] if parts else empty

    def in_parts(
        self, images: Tensor, loss: Callable[[Tensor], Tensor], views: int = 1
    ) -> Iterator[list[Tensor]]:
        """The same gradients for some units after others, all parts of one size and of at most `PART_BYTES`
        (or one unit), so that memory does not grow with the batch times the model.

        Args and errors are those of `compute`.
        """
        if len(images) % views:
            raise ValueError(f"{len(images)} rows do not fill units of {views} views")
        if len(images) == 0:
            return
        inputs, outer = self._passes(images, loss, views)
        units = len(images) // views
        size = self._part(units)
        for start in range(0, units, size):
            rows = slice(start * views, (start + size) * views)
            yield self._gradients([part[rows] for part in inputs], [part[rows] for part in outer], size)

    def _part(self, units: int) -> int:
        """The largest divisor of `units` within the limits: parts of another size would round otherwise."""
        size = sum(parameter.numel() * parameter.element_size() for parameter in self._parameters)
        most = max(1, min(units, PART_BYTES // max(1, size)))
        return next(count for count in range(most, 0, -1) if units % count == 0)

    def _passes(
        self, images: Tensor, loss: Callable[[Tensor], Tensor], views: int
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Each layer's input, and the gradient of the summed loss with respect to its output."""
        seen: dict[nn.Module, _Passage] = {}

        def remember(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if layer in seen:
                raise SettingRefused(_ONCE)
            if not output.requires_grad:
                output.requires_grad_()  # the first layer's output is where the graph begins
            seen[layer] = _Passage(inputs[0].detach(), output)

        handles = [layer.register_forward_hook(remember) for layer in self._layers]
        self._track(False)
        try:
            rows = loss(self._model(images))
        finally:
            self._track(True)
            for handle in handles:
                handle.remove()
        if len(seen) != len(self._layers):
            raise SettingRefused(_ONCE)
        if rows.shape != (len(images),):
            raise ValueError(f"the loss has shape {tuple(rows.shape)}, not one value for {len(images)} rows")
        # By layer, not by order of use: a forward pass may use layers in another order than they are listed.
        passages = [seen[layer] for layer in self._layers]
        if any(passage.was_overwritten for passage in passages):
            raise SettingRefused(
                "Per-sample gradients need layers' values as they were; use no in-place steps."
            )
        outer = torch.autograd.grad(rows.sum() / views, [passage.output for passage in passages])
        return [passage.inputs for passage in passages], outer

    @torch.no_grad()
    def _gradients(self, inputs: list[Tensor], outer: list[Tensor], units: int) -> list[Tensor]:
        gradients: list[Tensor] = []
        for layer, rows, grad in zip(self._layers, inputs, outer, strict=True):
            gradients += RULES[type(layer)](layer, rows, grad, units)
        return gradients
