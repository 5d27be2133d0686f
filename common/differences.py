"""What changed between two models of one student, in few bytes.

Both have the same tensors at the same places, so the difference is taken value by value:

    gaps, values    of all int8 codes: how many that stayed stand before each that changed, and by what it
                    changed. A gap of 255 or more is spelled by bytes of 255, each for as many codes
    numbers         of everything else, as whole numbers of 1, 2 or 4 bytes in the order of the floats that
                    they spell: the difference, its sign in the lowest bit, all first bytes before all second

Few ternary codes change from one round to the next: at 2% this takes .2 bits a code, a fifth less than
`zstd --patch-from`, which points back at what lies between two changes. zstd packs what is left of it.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward.common.compression import opened, shortest
from fedward.common.onnx_wire import FLOAT, FLOAT16, INT8, tensors

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[Any]
GAPS, VALUES, NUMBERS = "gaps", "values", "numbers"
_CODES = 0  # as a width: the codes are told by gaps
_WIDTHS = {INT8: _CODES, FLOAT16: 2, FLOAT: 4}
_STRUCTURE = 1  # names, shapes, nodes, and tensors of other types
_NUMBERS = (_STRUCTURE, 2, 4)
_FAR = 255  # a gap's byte that says: so many codes stayed, and the next one too


def difference(old: bytes, new: bytes) -> dict[str, bytes]:
    """The parts by which `restored` makes `new` of `old`.

    Raises:
        ValueError: one is no model, or they do not have the same tensors at the same places.
    """
    places = _places(old)
    if len(old) != len(new) or _places(new) != places:
        raise ValueError("the two models do not have the same tensors")
    before, after = (_by_width(model, places) for model in (old, new))
    changes = after[_CODES] - before[_CODES]
    changed = np.flatnonzero(changes)
    planes = [plane for width in _NUMBERS for plane in _planes(before[width], after[width], width)]
    return {
        GAPS: shortest([_gaps(changed)]),
        VALUES: shortest([changes[changed].tobytes()]),
        NUMBERS: shortest([plane.tobytes() for plane in planes]),
    }


def restored(old: bytes, parts: Mapping[str, bytes]) -> bytes:
    """The inverse of `difference`. What was made of another model than `old` gives another one, or:

    Raises:
        ValueError: `old` is no model, or the parts are not a difference to it.
    """
    places = _places(old)
    before = _by_width(old, places)
    after = {_CODES: _changed(before[_CODES], parts), **_moved(before, parts[NUMBERS])}
    new = np.empty(len(old), np.uint8)
    for width, array in after.items():
        start = 0
        for place in places[width]:
            new[place] = array[start : start + place.stop - place.start]
            start += place.stop - place.start
    return new.tobytes()


def _places(model: bytes) -> dict[int, list[slice]]:
    """Where a model's codes, its numbers of 2 and of 4 bytes, and all between them stand."""
    places: dict[int, list[slice]] = {_CODES: [], **{width: [] for width in _NUMBERS}}
    known = [tensor for tensor in tensors(model) if tensor.data_type in _WIDTHS]
    for tensor in known:
        width = _WIDTHS[tensor.data_type]
        if width and (tensor.end - tensor.start) % width:
            raise ValueError("a tensor holds half a number")
        places[width].append(slice(tensor.start, tensor.end))
    borders = [0, *(edge for tensor in known for edge in (tensor.start, tensor.end)), len(model)]
    places[_STRUCTURE] = [slice(start, end) for start, end in list(pairwise(borders))[::2]]
    return places


def _by_width(model: bytes, places: dict[int, list[slice]]) -> dict[int, Bytes]:
    raw = np.frombuffer(model, np.uint8)
    return {width: np.concatenate([raw[:0], *(raw[place] for place in own)]) for width, own in places.items()}


def _gaps(changed: npt.NDArray[np.int64]) -> bytes:
    gaps = np.diff(changed, prepend=-1) - 1
    long = gaps // _FAR
    spelled = np.full(int(long.sum()) + len(gaps), _FAR, np.uint8)
    spelled[np.cumsum(long + 1) - 1] = gaps % _FAR
    return spelled.tobytes()


def _changed(codes: Bytes, parts: Mapping[str, bytes]) -> Bytes:
    gaps = np.frombuffer(opened(parts[GAPS], len(codes)), np.uint8)
    values = np.frombuffer(opened(parts[VALUES], len(codes)), np.uint8)
    is_change = gaps != _FAR
    places = (np.cumsum(gaps.astype(np.int64) + is_change) - 1)[is_change]
    if len(places) != len(values) or (len(places) and places[-1] >= len(codes)):
        raise ValueError("it changes codes that are not there")
    after = codes.copy()
    after[places] += values
    return after


def _moved(before: dict[int, Bytes], frame: bytes) -> dict[int, Bytes]:
    """The numbers of each width, as bytes, moved by what a frame holds."""
    total = sum(len(before[width]) for width in _NUMBERS)
    data = np.frombuffer(opened(frame, total), np.uint8)
    if len(data) != total:
        raise ValueError("it moves more or fewer numbers than there are")
    after, start = {}, 0
    for width in _NUMBERS:
        size = len(before[width])
        after[width] = _joined(before[width], data[start : start + size], width)
        start += size
    return after


def _planes(before: Bytes, after: Bytes, width: int) -> Iterator[Bytes]:
    """The first bytes of all differences, then the second ones, and so on."""
    moved = _ordered(after, width) - _ordered(before, width)
    sign = (moved.view(f"<i{width}") >> (8 * width - 1)).view(moved.dtype)
    spelled = (moved << 1 ^ sign).astype(f"<u{width}")
    yield from np.ascontiguousarray(spelled.view(np.uint8).reshape(-1, width).T)


def _joined(before: Bytes, planes: Bytes, width: int) -> Bytes:
    spelled = np.ascontiguousarray(planes.reshape(width, -1).T).view(f"<u{width}").reshape(-1)
    moved = spelled >> 1 ^ (~(spelled & 1) + 1).astype(spelled.dtype)
    return _disordered(_ordered(before, width) + moved, width)


def _ordered(raw: Bytes, width: int) -> Integers:
    """Floats' bits as whole numbers of the same order, by which a small change is a small number."""
    bits = raw.view(f"<u{width}")
    if width == _STRUCTURE:
        return bits
    top = bits.dtype.type(1 << (8 * width - 1))
    return np.where(bits & top, ~bits, bits | top)


def _disordered(numbers: Integers, width: int) -> Bytes:
    if width != _STRUCTURE:
        top = numbers.dtype.type(1 << (8 * width - 1))
        numbers = np.where(numbers & top, numbers ^ top, ~numbers)
    return np.ascontiguousarray(numbers).view(np.uint8)
