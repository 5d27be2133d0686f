"""The nodes of a serialised ONNX graph, read and written (`fedward.common.onnx_wire`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedward.common.onnx_wire import GRAPH, NODE, encoded, fields, graph_of

_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of NodeProto
_NAME, _INTEGER, _TENSOR, _TYPE = 1, 3, 5, 20  # of AttributeProto
_IS_FLOAT, _IS_INTEGER = 1, 2  # values of its type
_FLOAT_TAG = bytes([2 << 3 | 5])  # its field 2, four bytes
_RAW_DATA = 9  # of TensorProto
_GRAPH_OUTPUT = 12  # of GraphProto
_OPSET_IMPORT, _OPSET_DOMAIN, _OPSET_VERSION = 8, 1, 2  # of ModelProto; of OperatorSetIdProto


@dataclass(frozen=True)
class Node:
    """A node: its operator, the names of its inputs and outputs, its integer attributes.

    Attributes:
        raw: it as it stands in the graph.
        constant: the raw bytes of its attribute that is a tensor; empty where it has none.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]
    raw: bytes
    constant: bytes = b""


def nodes_of(model: bytes) -> list[Node]:
    """A model's nodes, in order.

    Raises:
        ValueError: the model is malformed.
    """
    graph = graph_of(model)
    found = (field for field in fields(model, graph.value, graph.end) if field.number == NODE)
    return [_node(model[field.value : field.end]) for field in found]


def new_node(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: int | bytes
) -> Node:
    """A node that was not in the graph; an attribute is an integer, or the four bytes of a float32."""
    raw = b"".join(
        [
            *(encoded(_INPUT, name.encode()) for name in inputs),
            *(encoded(_OUTPUT, name.encode()) for name in outputs),
            encoded(_OPERATOR, operator.encode()),
            *(encoded(_ATTRIBUTE, _attribute(name, value)) for name, value in attributes.items()),
            encoded(_DOMAIN, domain.encode()) if domain else b"",
        ]
    )
    integers = {name: value for name, value in attributes.items() if isinstance(value, int)}
    return Node(operator, tuple(inputs), tuple(outputs), integers, raw)


def with_nodes(model: bytes, nodes: Sequence[Node], domains: Sequence[str] = ()) -> bytes:
    """The model with these nodes in place of its own, those left out that nothing needs.

    `domains` are operator sets that its own nodes did not have, in their first version.
    """
    graph = graph_of(model)
    rest = [field for field in fields(model, graph.value, graph.end) if field.number != NODE]
    needed = {_name(model[field.value : field.end]) for field in rest if field.number == _GRAPH_OUTPUT}
    kept = [encoded(NODE, node.raw) for node in _alive(nodes, needed)]
    parts = [model[field.start : field.end] for field in rest]
    imports = [encoded(_OPSET_DOMAIN, one.encode()) + encoded(_OPSET_VERSION, 1) for one in domains]
    return b"".join(
        [
            model[: graph.start],
            encoded(GRAPH, b"".join([*kept, *parts])),
            model[graph.end :],
            *(encoded(_OPSET_IMPORT, one) for one in imports),
        ]
    )


def _alive(nodes: Sequence[Node], needed: set[str]) -> list[Node]:
    kept: list[Node] = []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed = needed.union(node.inputs)
    return kept[::-1]


def _node(raw: bytes) -> Node:
    found = list(fields(raw))

    def texts(number: int) -> tuple[str, ...]:
        return tuple(raw[one.value : one.end].decode() for one in found if one.number == number)

    attributes = [raw[one.value : one.end] for one in found if one.number == _ATTRIBUTE]
    integers = {
        _name(one): field.integer for one in attributes for field in fields(one) if field.number == _INTEGER
    }
    constant = b"".join(map(_tensor, attributes))
    return Node("".join(texts(_OPERATOR)), texts(_INPUT), texts(_OUTPUT), integers, raw, constant)


def _tensor(attribute: bytes) -> bytes:
    """The raw bytes of the tensor in an attribute, if there is one."""
    tensors = [attribute[one.value : one.end] for one in fields(attribute) if one.number == _TENSOR]
    return b"".join(
        tensor[one.value : one.end] for tensor in tensors for one in fields(tensor) if one.number == _RAW_DATA
    )


def _name(message: bytes) -> str:
    """Of an attribute or of a graph's output: in both it is the first field."""
    return "".join(message[one.value : one.end].decode() for one in fields(message) if one.number == _NAME)


def _attribute(name: str, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return encoded(_NAME, name.encode()) + _FLOAT_TAG + value + encoded(_TYPE, _IS_FLOAT)
    return encoded(_NAME, name.encode()) + encoded(_INTEGER, value) + encoded(_TYPE, _IS_INTEGER)
