"""Packed vectors for the wire: one uint8 array that names its codec.

Layout, little-endian: magic ``FWD1``, codec id u8, three zero bytes, count u64, then the codec's body.
``fp32``: count float32 values. ``int8``: per block of 4096 values a float32 step, then count int8 codes;
value = code * step. Rounding is deterministic: of a noised update it is post-processing and adds no more
than half a step. Decoding checks length and finiteness before anything is used.
"""

import struct

import numpy as np
import numpy.typing as npt

from fedward.common.errors import PayloadRefused, UnknownName

Vector = npt.NDArray[np.float32]
Payload = npt.NDArray[np.uint8]

_MAGIC = b"FWD1"
_HEADER = struct.Struct("<4sB3xQ")
BLOCK = 4096
MAXIMUM_COUNT = 1 << 28
_LARGEST = np.float32(3.4e38)  # a little below float32's: 127 steps of it do not overflow
CODECS = {"fp32": 1, "int8": 2}


def codec_id(name: str) -> int:
    """The id of codec `name`.

    Raises:
        UnknownName: there is no such codec.
    """
    if name not in CODECS:
        raise UnknownName(f"There is no codec {name!r}; choose one of {', '.join(CODECS)}.")
    return CODECS[name]


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


def _encode_int8(vector: Vector) -> bytes:
    padded = np.zeros(_blocks(len(vector)) * BLOCK, np.float32)
    padded[: len(vector)] = vector
    blocks = padded.reshape(-1, BLOCK)
    step = (np.abs(blocks).max(axis=1) / np.float32(127)).astype("<f4")
    safe = np.where(step > 0, step, np.float32(1))[:, None]
    codes = np.clip(np.rint(blocks / safe), -127, 127).astype(np.int8)
    return bytes(step.tobytes()) + codes.reshape(-1)[: len(vector)].tobytes()


def _decode_int8(body: bytes, count: int) -> Vector:
    step = np.frombuffer(body[: 4 * _blocks(count)], "<f4")
    codes = np.frombuffer(body[4 * _blocks(count) :], np.int8)
    with np.errstate(over="ignore", invalid="ignore"):  # `decode` refuses what is not finite
        return np.asarray(codes * np.repeat(step, BLOCK)[:count], np.float32)


def _body_size(name: str, count: int) -> int:
    return 4 * count if name == "fp32" else 4 * _blocks(count) + count


def encode(vector: Vector, codec: str) -> Payload:
    """Pack a float32 vector, shape (n,), as a uint8 array.

    Raises:
        UnknownName: there is no such codec.
        PayloadRefused: the vector is not finite, or holds values above 3.4e38.
    """
    identity = codec_id(codec)
    if not (np.abs(vector) <= _LARGEST).all():
        raise PayloadRefused("A vector with NaN or infinite values is not encoded; lower the learning rate.")
    body = vector.astype("<f4").tobytes() if codec == "fp32" else _encode_int8(vector)
    return np.frombuffer(_HEADER.pack(_MAGIC, identity, len(vector)) + body, np.uint8)


def decode(payload: Payload, count: int, codec: str) -> Vector:
    """Unpack exactly `count` float32 values that were packed with `codec`.

    Raises:
        UnknownName: there is no such codec.
        PayloadRefused: not a uint8 array, another codec or count, truncated, too long, or not finite.
    """
    identity = codec_id(codec)
    if payload.dtype != np.uint8 or payload.ndim != 1 or len(payload) < _HEADER.size:
        raise PayloadRefused("A packed vector is a flat uint8 array with a header; this is not one.")
    data = payload.tobytes()
    magic, given, claimed = _HEADER.unpack_from(data)
    if magic != _MAGIC or given != identity or data[5:8] != bytes(3):
        raise PayloadRefused(f"The packed vector is not in codec {codec!r} of this version.")
    if claimed != count or count > MAXIMUM_COUNT:
        raise PayloadRefused(f"The packed vector claims {claimed} values where {count} are expected.")
    if len(data) != _HEADER.size + _body_size(codec, count):
        raise PayloadRefused(
            f"The packed vector has {len(data)} bytes, which does not fit its {count} values."
        )
    body = data[_HEADER.size :]
    vector = np.frombuffer(body, "<f4").astype(np.float32) if codec == "fp32" else _decode_int8(body, count)
    if not np.isfinite(vector).all():
        raise PayloadRefused("The packed vector holds NaN or infinite values.")
    return vector
