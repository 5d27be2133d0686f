"""A release's model as one zstd frame (RFC 8878)."""

from itertools import pairwise

import onnx
import zstandard
from onnx import TensorProto

_LEVEL = 19
_BY_TENSOR = ("vit",)  # a convolutional student has no tensor that is large enough to gain
_LEAST = 1024  # codes of a tensor; a block of fewer does not pay for its own header
# Among ternary codes every few values repeat by chance, and to point back at them costs more than to write
# them again: a table of 64 places finds next to none.
_WITHOUT_REPEATS = {"min_match": 7, "hash_log": 6, "chain_log": 6, "search_log": 1}


def compressed(graph: bytes, family: str) -> bytes:
    """An ONNX model as one frame; equal models give equal bytes.

    Args:
        graph: the serialised model.
        family: of the student. For a transformer a block may also begin at each tensor of codes and at its
            end, which keeps the block's Huffman table free of other bytes: 1.6 bits a ternary weight where
            tensors are large. The shorter of both is returned.
    """
    whole = zstandard.ZstdCompressor(level=_LEVEL).compress(graph)
    return min(whole, _by_tensor(graph), key=len) if family in _BY_TENSOR else whole


def _by_tensor(graph: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, **_WITHOUT_REPEATS)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(graph))
    borders, parts = _borders(graph), []
    for start, end in pairwise(borders):
        parts += [frame.compress(graph[start:end]), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*parts, frame.flush()])


def _borders(graph: bytes) -> list[int]:
    """Where tensors of codes begin and end in the serialised model, with its own begin and end."""
    borders = [0]
    for tensor in onnx.load_from_string(graph).graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.raw_data) >= _LEAST:
            start = graph.index(tensor.raw_data, borders[-1])
            borders += [start, start + len(tensor.raw_data)]
    return [*borders, len(graph)]
