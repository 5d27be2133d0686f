"""The size that a JPEG, JPEG-LS or JPEG 2000 stream will decode to, read from its headers alone.

A few bytes can ask a decoder for gigabytes; DICOM's own Rows and Columns do not bound that.
References: ISO/IEC 10918-1 annex B (SOFn), 14495-1 (SOF55), 15444-1 annex A (SIZ).
"""

import struct

_JPEG_2000 = b"\xff\x4f\xff\x51"
_JPEG = b"\xff\xd8"
_FRAME_STARTS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # DHT, JPG and DAC are no frames
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9), 0xFF})  # have no length


def coded_size(stream: bytes) -> tuple[int, int] | None:
    """(height, width) that `stream` says; None when it is of none of the three kinds.

    Raises:
        ValueError: a JPEG whose header is damaged.
    """
    if stream.startswith(_JPEG_2000):
        return _siz(stream)
    return _start_of_frame(stream) if stream.startswith(_JPEG) else None


def _siz(stream: bytes) -> tuple[int, int]:
    try:
        width, height, left, top = struct.unpack_from(">4I", stream, 8)
    except struct.error as error:
        raise ValueError("its JPEG 2000 header is cut short") from error
    return height - top, width - left


def _start_of_frame(stream: bytes) -> tuple[int, int]:
    place = len(_JPEG)
    while place + 9 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker in _FRAME_STARTS:
            height, width = struct.unpack_from(">2H", stream, place + 5)
            return height, width
        step = 1 if marker == 0xFF else 2
        if marker not in _BARE_MARKERS:
            step += struct.unpack_from(">H", stream, place + 2)[0]
        place += step
    raise ValueError("its JPEG header is damaged")
