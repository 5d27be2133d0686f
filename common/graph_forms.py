"""The same network as graphs that compute in other ways; which is fastest is found out on the machine.

    fp32    as it was shipped: codes are multiplied by their scale once, at load, and fp32 computes
    int8    each product of tokens with a weight stored as codes is taken in int8: the tokens are quantised
            to eight bits by their own range as they come (DynamicQuantizeLinear, MatMulInteger), and the
            weight's codes are used as they stand
    fused   int8, and onnxruntime's own operators for each attention with its query, key and value
            (QAttention) and for each sum that is normed (SkipSimplifiedLayerNormalization)

A form is made where the release runs, of the verified graph, and is never shipped. Convolutions stay as they
are: dynamic int8 makes them many times slower. The range is of all images of a batch, so that a form other
than fp32 is shown one image at a time.
"""

import contextlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from fedward.common.onnx_nodes import Node, new_node, nodes_of, with_nodes
from fedward.common.onnx_wire import INT8, tensors

FP32, INT8_PRODUCTS, FUSED = FORMS = ("fp32", "int8", "fused")
_TO_FLOAT = 1
_ONNXRUNTIME = "com.microsoft"
_NORM = ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul")  # of `transformer_graph.rms_norm`
_FLOAT_BYTES = 4
_Made = dict[str, Node]  # the node behind each value's name
_Shapes = dict[str, tuple[int, ...]]  # of the codes by their name


@dataclass(frozen=True)
class _Linear:
    """A linear layer whose weight is stored as codes: the names of its values; no bias is an empty one."""

    tokens: str
    codes: str
    scale: str
    bias: str


def in_form(model: bytes, form: str) -> bytes:
    """The model in one of `FORMS`; the same bytes where it has nothing that the form would change.

    Raises:
        ValueError: the model is malformed.
    """
    if form == FP32:
        return model
    nodes = nodes_of(model)
    made = {name: node for node in nodes for name in node.outputs}
    shapes = {tensor.name: tensor.shape for tensor in tensors(model) if tensor.data_type == INT8}
    if not any(_weight(node, made) for node in nodes):
        return model
    replaced = _fused(nodes, made, shapes) if form == FUSED else {}
    also = {name for new in replaced.values() for name in new[-1].outputs[1:]}
    changed = [
        new for node in nodes if node.outputs[0] not in also for new in replaced.get(node.outputs[0], [node])
    ]
    parts = [part for node in changed for part in _in_int8(node, made, shapes)]
    return with_nodes(model, parts, [_ONNXRUNTIME] if replaced else [])


def _in_int8(node: Node, made: _Made, shapes: _Shapes) -> list[Node]:
    weight = _weight(node, made)
    if weight is None or len(shapes.get(weight.inputs[0], ())) != 2:
        return [node]
    (codes, scale), out = weight.inputs[:2], node.outputs[0]
    tokens, size, zero, turned, whole, real, both = (f"{out}/{name}" for name in "qszwifm")
    return [
        new_node("DynamicQuantizeLinear", [node.inputs[0]], [tokens, size, zero]),
        new_node("Transpose", [codes], [turned]),
        new_node("MatMulInteger", [tokens, turned, zero], [whole]),
        new_node("Cast", [whole], [real], to=_TO_FLOAT),
        new_node("Mul", [size, scale], [both]),
        new_node("Mul", [real, both], [out]),
    ]


def _weight(node: Node, made: _Made) -> Node | None:
    """The DequantizeLinear, by output channel, behind the second factor of a product x W^T."""
    found = _behind(node, made, 1, "MatMul", "Transpose", "DequantizeLinear")
    return found if found is not None and found.integers.get("axis") == 0 else None


def _behind(node: Node, made: _Made, which: int, *operators: str) -> Node | None:
    """The first node of a chain that ends in `node`: through its input `which`, then through first inputs."""
    for number, operator in enumerate(operators):
        if node.operator != operator:
            return None
        if number == len(operators) - 1:
            return node
        name = node.inputs[which if number == 0 else 0]
        if name not in made:
            return None
        node = made[name]
    return None


def _fused(nodes: list[Node], made: _Made, shapes: _Shapes) -> dict[str, list[Node]]:
    """onnxruntime's own operators and what leads to each, by the name of the first value that it puts out."""
    users: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        for name in node.inputs:
            users[name].append(node)
    found = {}
    for node in nodes:
        # What does not look like an attention or a norm is none: it stays as it is.
        with contextlib.suppress(KeyError, ValueError, IndexError):
            new: list[Node] = []
            if node.operator == "Softmax":
                new = _attention(node, made, users, shapes)
            elif node.operator == "Pow":
                new = _normed_sum(node, made, users)
            found.update({new[-1].outputs[0]: new} if new else {})
    return found


def _normed_sum(square: Node, made: _Made, users: dict[str, list[Node]]) -> list[Node]:
    """RMSNorm of a sum, which it puts out too; nothing for anything else."""
    chain = [square]
    while len(chain) < len(_NORM):
        (following,) = users[chain[-1].outputs[0]]
        chain.append(following)
    names = [node.operator for node in chain]
    total, epsilon = made[square.inputs[0]], made[chain[2].inputs[1]].constant
    if (*names, total.operator) != (*_NORM, "Add") or len(epsilon) != _FLOAT_BYTES:
        return []
    inputs, outputs = [*total.inputs, chain[-1].inputs[1]], [chain[-1].outputs[0], "", "", total.outputs[0]]
    return [new_node("SkipSimplifiedLayerNormalization", inputs, outputs, _ONNXRUNTIME, epsilon=epsilon)]


def _attention(softmax: Node, made: _Made, users: dict[str, list[Node]], shapes: _Shapes) -> list[Node]:
    """softmax(q k^T / sqrt(d)) v, as `server.transformer_graph` writes it; nothing for anything else."""
    (mixed,) = users[softmax.outputs[0]]
    (joined,) = users[mixed.outputs[0]]
    (out,) = users[joined.outputs[0]]
    heads = [
        _behind(softmax, made, 0, "Softmax", "MatMul", "Mul", "Transpose", "Reshape"),
        _behind(made[softmax.inputs[0]], made, 1, "MatMul", "Transpose", "Transpose", "Reshape"),
        _behind(mixed, made, 1, "MatMul", "Transpose", "Reshape"),
    ]
    found = [head for head in heads if head is not None]
    layers = [_linear(made[head.inputs[0]], made) for head in found]
    known = [layer for layer in layers if layer is not None]
    if len(known) < len(heads) or (joined.operator, out.operator) != ("Transpose", "Reshape"):
        return []
    rows, read = {shapes[layer.codes] for layer in known}, {layer.tokens for layer in known}
    has_bias = any(layer.bias for layer in known)
    if len(rows) > 1 or len(read) > 1 or not has_bias:  # one key for all heads is not that operator's
        return []
    of_head = int(np.frombuffer(made[found[0].inputs[1]].constant, np.int64)[-1])
    return _together(known, out.outputs[0], heads=rows.pop()[0] // of_head)


def _together(layers: list[_Linear], out: str, heads: int) -> list[Node]:
    """One product for query, key and value, and the attention; what is constant here is joined at load."""
    names = ("tokens", "size", "zero", "codes", "turned", "scale", "bias", "none")
    tokens, size, zero, codes, turned, scale, bias, none = (f"{out}/{name}" for name in names)
    some = next(layer.bias for layer in layers if layer.bias)
    return [
        new_node("DynamicQuantizeLinear", [layers[0].tokens], [tokens, size, zero]),
        new_node("Concat", [layer.codes for layer in layers], [codes], axis=0),
        new_node("Transpose", [codes], [turned]),
        new_node("Concat", [layer.scale for layer in layers], [scale], axis=0),
        new_node("Sub", [some, some], [none]),  # a key has no bias
        new_node("Concat", [layer.bias or none for layer in layers], [bias], axis=0),
        new_node(
            "QAttention", [tokens, turned, bias, size, scale, "", zero], [out], _ONNXRUNTIME, num_heads=heads
        ),
    ]


def _linear(node: Node, made: _Made) -> _Linear | None:
    """The layer that puts out what `node` does; None if it is none."""
    bias = node.inputs[1] if node.operator == "Add" else ""
    product = made[node.inputs[0]] if bias else node
    weight = _weight(product, made)
    return None if weight is None else _Linear(product.inputs[0], weight.inputs[0], weight.inputs[1], bias)
