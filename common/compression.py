"""A release's model as one zstd frame (RFC 8878), and frames of another machine's opened within bounds."""

from collections.abc import Sequence
from itertools import pairwise

import zstandard

from fedward.common.onnx_wire import INT8, tensors

WINDOW_LIMIT_BYTES = 1 << 27  # what `zstd --long` asks a reader to hold
_LEVEL = 19
_BY_TENSOR = ("vit",)  # a convolutional student has no tensor that is large enough to gain
_LEAST = 1024  # codes of a tensor; a block of fewer does not pay for its own header
# Among ternary codes every few values repeat by chance, and to point back at them costs more than to write
# them again: a table of 64 places finds next to none.
_WITHOUT_REPEATS = {"min_match": 7, "hash_log": 6, "chain_log": 6, "search_log": 1}


def family_of(student: str) -> str:
    """The family in a student's name, as `fedward.common.models` has it: ternary-vit-m is of vit."""
    return [*student.split("-"), ""][1]


def compressed(graph: bytes, family: str) -> bytes:
    """An ONNX model as one frame; equal models give equal bytes.

    Args:
        graph: the serialised model.
        family: of the student. For a transformer a block may also begin at each tensor of codes and at its
            end, which keeps the block's Huffman table free of other bytes: 1.6 bits a ternary weight where
            tensors are large. The shorter of both is returned.
    """
    if family not in _BY_TENSOR:
        return zstandard.ZstdCompressor(level=_LEVEL).compress(graph)
    return shortest([graph[start:end] for start, end in pairwise(_borders(graph))])


def shortest(parts: Sequence[bytes]) -> bytes:
    """One frame of all parts: as a whole, or without repeats and with a block's border behind each part."""
    whole = zstandard.ZstdCompressor(level=_LEVEL).compress(b"".join(parts))
    return min(whole, _by_part(parts), key=len)


def opened(frame: bytes, limit_bytes: int, dictionary: zstandard.ZstdCompressionDict | None = None) -> bytes:
    """What exactly one frame holds; it says its size, and memory is set aside for no more than allowed.

    Raises:
        ValueError: it is no such frame, or holds more.
    """
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if size > limit_bytes:  # one that says none says the largest
            raise ValueError("a part is larger than it can be")
        reader = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=WINDOW_LIMIT_BYTES)
        data = reader.decompress(frame, max_output_size=limit_bytes, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ValueError("a part is not one zstd frame") from error
    if len(data) != size:
        raise ValueError("a part is of another size than it says")
    return data


def _by_part(parts: Sequence[bytes]) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, **_WITHOUT_REPEATS)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=sum(map(len, parts)))
    blocks = []
    for part in parts:
        blocks += [frame.compress(part), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*blocks, frame.flush()])


def _borders(graph: bytes) -> list[int]:
    """Where tensors of codes begin and end in the serialised model, with its own begin and end."""
    borders = [0]
    for tensor in tensors(graph):
        if tensor.data_type == INT8 and tensor.end - tensor.start >= _LEAST:
            borders += [tensor.start, tensor.end]
    return [*borders, len(graph)]
