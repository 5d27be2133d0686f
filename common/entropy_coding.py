"""Small whole numbers, packed and entropy-coded by zstd (RFC 8878) at its Huffman stage.

A code takes 4 bits (two a byte, the first in the low half) or 8. The lowest number of these bits is an
escape: such a code follows, in order, as int16 behind the short ones. The settings below keep zstd from
looking for repeats, which noise does not have: what is left are Huffman codes of bytes, adapted to each
128 KiB. Of Gaussian noise that takes 1 to 2.5% more than its entropy.

What is read comes from another machine. Its size is bounded before memory is set aside: a frame that
says another size than so many codes can have, or none, is refused unread.
"""

import numpy as np
import numpy.typing as npt
import zstandard

from fedward.common.errors import PayloadRefused

Codes = npt.NDArray[np.int16]

LARGEST_CODE = 32767
_HUFFMAN_ONLY = {
    "window_log": 17,
    "hash_log": 6,
    "chain_log": 6,
    "search_log": 1,
    "min_match": 7,
    "target_length": 0,
    "strategy": zstandard.STRATEGY_FAST,
    "write_content_size": True,
}


def pack(codes: Codes, width: int) -> bytes:
    """Code whole numbers from -32767 to 32767, shape (n,), of which most should fit `width` bits, 4 or 8."""
    if len(codes) == 0:
        return b""
    settings = zstandard.ZstdCompressionParameters(**_HUFFMAN_ONLY)
    return zstandard.ZstdCompressor(compression_params=settings).compress(packed(codes, width))


def packed(codes: Codes, width: int) -> bytes:
    """What `pack` hands to zstd: short codes, then the escaped ones."""
    escape = _escape(width)
    is_long = np.abs(codes) >= -escape
    short = np.where(is_long, escape, codes).astype(np.int8)
    return _joined(short, width) + codes[is_long].astype("<i2").tobytes()


def unpack(frame: bytes, count: int, width: int) -> Codes:
    """The inverse of `pack` for exactly `count` codes.

    Raises:
        PayloadRefused: not one zstd frame of so many codes, trailing bytes, or a code out of range.
    """
    data = _decompressed(frame, count, width)
    size = _short_size(count, width)
    short = _split(data[:size], count, width)
    is_long, long = short == _escape(width), np.frombuffer(data[size:], "<i2")
    if len(long) != is_long.sum() or not _fits(long, width):
        raise PayloadRefused("The packed vector holds codes out of range.")
    codes = short.astype(np.int16)
    codes[is_long] = long
    return codes


def _escape(width: int) -> int:
    return -(1 << (width - 1))


def _short_size(count: int, width: int) -> int:
    return -(-count * width // 8)


def _fits(long: Codes, width: int) -> bool:
    """Whether escaped codes are such as need an escape: one vector of codes is packed in one way only."""
    sizes = np.abs(long.astype(np.int32))
    return bool(((sizes >= -_escape(width)) & (sizes <= LARGEST_CODE)).all())


def _joined(short: npt.NDArray[np.int8], width: int) -> bytes:
    if width == 8:
        return short.tobytes()
    halves = np.zeros(2 * _short_size(len(short), width), np.uint8)
    halves[: len(short)] = short.view(np.uint8) & 15
    return (halves[::2] | halves[1::2] << 4).tobytes()


def _split(data: bytes, count: int, width: int) -> npt.NDArray[np.int8]:
    if width == 8:
        return np.frombuffer(data, np.int8)
    pairs = np.frombuffer(data, np.uint8)
    halves = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)
    if halves[count:].any():
        raise PayloadRefused("The packed vector holds codes behind its last one.")
    return ((halves[:count] ^ 8).astype(np.int8) - 8).astype(np.int8)  # two's complement of four bits


def _decompressed(frame: bytes, count: int, width: int) -> bytes:
    if count == 0 and not frame:
        return b""
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        _check_size(size, len(frame), count, width)
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise PayloadRefused("The packed vector's codes are damaged: they are not one zstd frame.") from error
    if len(data) != size:
        raise PayloadRefused("The packed vector's codes are not as many bytes as they say.")
    return data


def _check_size(size: int, frame_size: int, count: int, width: int) -> None:
    """Refuse a frame that says more than `count` codes can be, or is larger than coding ever makes one."""
    escaped = size - _short_size(count, width)
    is_possible = 0 <= escaped <= 2 * count and escaped % 2 == 0
    if count == 0 or not is_possible or frame_size > size + size // 128 + 64:
        raise PayloadRefused(f"The packed vector's codes say {size} bytes, which do not fit {count} values.")
