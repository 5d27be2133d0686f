"""ONNX's serialised form (protocol buffers), read and rewritten where the package `onnx` is not installed.

Field numbers are those of onnx.proto, which never change (IR version 10). What is read comes from a model
whose SHA-256 a signature covers; anything malformed is a ValueError all the same, and no length is believed
beyond the bytes that are there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

GRAPH, NODE, INITIALIZER = 7, 1, 5  # of ModelProto; of GraphProto
FLOAT, INT8, FLOAT16 = 1, 3, 10  # TensorProto.DataType
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9  # of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10  # bytes


@dataclass(frozen=True)
class Field:
    """One field: it begins at byte `start`, its value at `value`; both end at `end`.

    `integer` is the value of one that is a varint, else 0.
    """

    number: int
    start: int
    value: int
    end: int
    integer: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """An initialiser: its name, its DataType, its shape, and where its raw bytes stand in the model."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    start: int
    end: int


def fields(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of the message that fills `data` from `start` to `end`.

    Raises:
        ValueError: it is none.
    """
    stop = len(data) if end is None else end
    while start < stop:
        tag, value = _varint(data, start, stop)
        integer, kind = 0, tag & 7
        if kind == _VARINT:
            integer, last = _varint(data, value, stop)
        elif kind == _BYTES:
            length, value = _varint(data, value, stop)
            last = value + length
        elif kind in _WIDTHS:
            last = value + _WIDTHS[kind]
        else:
            raise ValueError("a field of a kind that protocol buffers do not have")
        if last > stop:
            raise ValueError("a field ends behind its message")
        yield Field(tag >> 3, start, value, last, integer)
        start = last


def graph_of(model: bytes) -> Field:
    """The one graph of a model.

    Raises:
        ValueError: there is none, or more than one.
    """
    (graph,) = [field for field in fields(model) if field.number == GRAPH]
    return graph


def tensors(model: bytes) -> list[StoredTensor]:
    """The initialisers that hold raw bytes, in the order in which they stand.

    Raises:
        ValueError: the model is malformed.
    """
    graph = graph_of(model)
    found = [
        _tensor(model, field)
        for field in fields(model, graph.value, graph.end)
        if field.number == INITIALIZER
    ]
    return [tensor for tensor in found if tensor is not None]


def encoded(number: int, value: bytes | int) -> bytes:
    """A field as it is written: bytes with their length, or a number of 0 or more."""
    if isinstance(value, int):
        return _spelled(number << 3 | _VARINT) + _spelled(value)
    return _spelled(number << 3 | _BYTES) + _spelled(len(value)) + value


def _tensor(model: bytes, field: Field) -> StoredTensor | None:
    name, data_type, shape, raw = "", 0, [], None
    for part in fields(model, field.value, field.end):
        if part.number == _TENSOR_NAME:
            name = model[part.value : part.end].decode()
        elif part.number == _DATA_TYPE:
            data_type = part.integer
        elif part.number == _DIMS:
            shape += _dims(model, part)
        elif part.number == _RAW_DATA:
            raw = part
    return None if raw is None else StoredTensor(name, data_type, tuple(shape), raw.value, raw.end)


def _dims(model: bytes, part: Field) -> list[int]:
    """A repeated number stands alone, or packed with the others into one field."""
    if model[part.start] & 7 == _VARINT:
        return [part.integer]
    found, place = [], part.value
    while place < part.end:
        number, place = _varint(model, place, part.end)
        found.append(number)
    return found


def _varint(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """The number at `start`, seven bits a byte, the lowest first; and where it ends."""
    number = 0
    for index, byte in enumerate(data[start : min(stop, start + _LONGEST_VARINT)]):
        number |= (byte & 127) << 7 * index
        if byte < 128:
            return number, start + index + 1
    raise ValueError("a number is cut, or longer than any")


def _spelled(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
