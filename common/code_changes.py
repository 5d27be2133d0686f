"""What changed between two models of one student, in few bytes.

Both have the same tensors at the same places, so the difference is taken value by value:

    gaps, values    of all ternary codes: how many that stayed stand before each that changed, and what it is
                    now, those first that were not zero. A gap of 255 or more is spelled by bytes of 255,
                    each for as many codes
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
_CODES, _STRUCTURE = "ternary codes", "structure"  # that: names, shapes, nodes, tensors of other types
_OF_TYPE = {INT8: "bytes", FLOAT16: "halves", FLOAT: "floats"}
_WIDTHS = {_STRUCTURE: 1, "bytes": 1, "halves": 2, "floats": 4}
_FAR = 255  # a gap's byte that says: so many codes stayed, and the next one too


def difference(old: bytes, new: bytes) -> dict[str, bytes]:
    """The parts by which `restored` makes `new` of `old`.

    Raises:
        ValueError: one is no model, or they do not have the same tensors at the same places.
    """
    places = _places(old)
    if len(old) != len(new) or [(t.start, t.end) for t in tensors(new)] != [
        (t.start, t.end) for t in tensors(old)
    ]:
        raise ValueError("the two models do not have the same tensors")
    before, after = (_by_kind(model, places) for model in (old, new))
    changed = np.flatnonzero(after[_CODES] != before[_CODES])
    were_zero, now = before[_CODES][changed] == 0, after[_CODES][changed]
    planes = [plane for kind in _WIDTHS for plane in _planes(before[kind], after[kind], _WIDTHS[kind])]
    return {
        GAPS: shortest([_gaps(changed)]),
        VALUES: shortest([now[~were_zero].tobytes(), now[were_zero].tobytes()]),
        NUMBERS: shortest([plane.tobytes() for plane in planes]),
    }


def restored(old: bytes, parts: Mapping[str, bytes]) -> bytes:
    """The inverse of `difference`. What was made of another model than `old` gives another one, or:

    Raises:
        ValueError: `old` is no model, or the parts are not a difference to it.
    """
    places = _places(old)
    before = _by_kind(old, places)
    after = {_CODES: _changed(before[_CODES], parts), **_moved(before, parts[NUMBERS])}
    new = np.empty(len(old), np.uint8)
    for kind, array in after.items():
        start = 0
        for place in places[kind]:
            new[place] = array[start : start + place.stop - place.start]
            start += place.stop - place.start
    return new.tobytes()


def _places(model: bytes) -> dict[str, list[slice]]:
    """Where a model's ternary codes, its numbers of each kind, and all between them stand."""
    places: dict[str, list[slice]] = {kind: [] for kind in (_CODES, *_WIDTHS)}
    known = [tensor for tensor in tensors(model) if tensor.data_type in _OF_TYPE]
    for tensor in known:
        kind = _OF_TYPE[tensor.data_type]
        if (tensor.end - tensor.start) % _WIDTHS[kind]:
            raise ValueError("a tensor holds half a number")
        is_ternary = tensor.data_type == INT8 and _is_ternary(model[tensor.start : tensor.end])
        places[_CODES if is_ternary else kind].append(slice(tensor.start, tensor.end))
    borders = [0, *(edge for tensor in known for edge in (tensor.start, tensor.end)), len(model)]
    places[_STRUCTURE] = [slice(start, end) for start, end in list(pairwise(borders))[::2]]
    return places


def _is_ternary(codes: bytes) -> bool:
    return bool(np.abs(np.frombuffer(codes, np.int8).astype(np.int16)).max(initial=0) <= 1)


def _by_kind(model: bytes, places: dict[str, list[slice]]) -> dict[str, Bytes]:
    raw = np.frombuffer(model, np.uint8)
    return {kind: np.concatenate([raw[:0], *(raw[place] for place in own)]) for kind, own in places.items()}


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
    after, were_zero = codes.copy(), codes[places] == 0
    after[np.concatenate([places[~were_zero], places[were_zero]])] = values
    return after


def _moved(before: dict[str, Bytes], frame: bytes) -> dict[str, Bytes]:
    """The numbers of each kind, as bytes, moved by what a frame holds."""
    total = sum(len(before[kind]) for kind in _WIDTHS)
    data = np.frombuffer(opened(frame, total), np.uint8)
    if len(data) != total:
        raise ValueError("it moves more or fewer numbers than there are")
    after, start = {}, 0
    for kind, width in _WIDTHS.items():
        size = len(before[kind])
        after[kind] = _joined(before[kind], data[start : start + size], width)
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
    if width == 1:
        return bits
    top = bits.dtype.type(1 << (8 * width - 1))
    return np.where(bits & top, ~bits, bits | top)


def _disordered(numbers: Integers, width: int) -> Bytes:
    if width > 1:
        top = numbers.dtype.type(1 << (8 * width - 1))
        numbers = np.where(numbers & top, numbers ^ top, ~numbers)
    return np.ascontiguousarray(numbers).view(np.uint8)
