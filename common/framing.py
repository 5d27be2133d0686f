"""One framing for arrays: a JSON header that names and measures the parts, then their raw bytes.

    magic (8) | length of the header (4, big-endian) | [["model/latents", 62984], ...] | bytes of each part

The header is canonical JSON, parts are sorted by name, and nothing follows the last: so no two byte strings
mean the same parts, and nothing is set aside for a size that is claimed but not there.
"""

from collections.abc import Mapping

from fedward.common.errors import PayloadRefused
from fedward.common.files import canonical_json, parse_canonical

MAGIC = b"FEDPART\x01"
MOST_FRAME_BYTES = 1 << 28
MOST_PARTS = 64
_LENGTH_BYTES = 4
_MOST_HEADER_BYTES = 1 << 14
_LONGEST_NAME = 100


def pack(parts: Mapping[str, bytes]) -> bytes:
    """The frame that holds `parts`; the order in which they are named changes nothing.

    Raises:
        PayloadRefused: too many, a name that is no name, or together over `MOST_FRAME_BYTES`.
    """
    names = sorted(parts)
    header = canonical_json([[name, len(parts[name])] for name in names])
    _require(len(names) <= MOST_PARTS, f"there are {len(names)} parts of at most {MOST_PARTS}")
    _require(all(map(_is_name, names)), "a part's name is no name")
    frame = b"".join([MAGIC, len(header).to_bytes(_LENGTH_BYTES, "big"), header, *map(parts.get, names)])  # type: ignore[list-item]
    _require(len(frame) <= MOST_FRAME_BYTES, f"it is over {MOST_FRAME_BYTES} bytes")
    return frame


def unpack(frame: bytes) -> dict[str, memoryview]:
    """The inverse of `pack`: views into `frame`, by name.

    Raises:
        PayloadRefused: no such frame, cut, longer than its parts, or spelled in another way.
    """
    _require(len(frame) <= MOST_FRAME_BYTES, f"it is over {MOST_FRAME_BYTES} bytes")
    start = len(MAGIC) + _LENGTH_BYTES
    _require(frame[: len(MAGIC)] == MAGIC and len(frame) >= start, "it does not begin as one of this version")
    length = int.from_bytes(frame[len(MAGIC) : start], "big")
    _require(length <= min(_MOST_HEADER_BYTES, len(frame) - start), "its header is cut or too long")
    sizes = _sizes(frame[start : start + length])
    _require(start + length + sum(sizes.values()) == len(frame), "it is cut, or longer than its parts")
    return _views(memoryview(frame), start + length, sizes)


def _views(frame: memoryview, position: int, sizes: dict[str, int]) -> dict[str, memoryview]:
    views = {}
    for name, size in sizes.items():
        views[name] = frame[position : position + size]
        position += size
    return views


def _sizes(header: bytes) -> dict[str, int]:
    try:
        entries = parse_canonical(header)
    except ValueError as error:
        raise PayloadRefused(f"A packed message is malformed: {error}; its sender must repeat it.") from error
    _require(isinstance(entries, list) and len(entries) <= MOST_PARTS, "its header is no list of parts")
    _require(all(isinstance(entry, list) and len(entry) == 2 for entry in entries), "a part has two fields")
    _require(all(_is_name(name) and _is_size(size) for name, size in entries), "a part has a name and a size")
    names = [name for name, _ in entries]
    _require(names == sorted(set(names)), "its parts are not sorted, or one stands twice")
    return dict(entries)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= _LONGEST_NAME


def _is_size(size: object) -> bool:
    return type(size) is int and 0 <= size <= MOST_FRAME_BYTES


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise PayloadRefused(f"A packed message is malformed: {why}; its sender must repeat it.")
