"""Packed vectors for the wire: one uint8 array that names its codec.

Layout, little-endian: magic ``FWD1``, codec id u8, three zero bytes, count u64, then the codec's body.
``fp32``: count float32 values. ``int8``: per block of 4096 values a float32 step, then count int8 codes;
value = code * step. ``coded8``, ``coded4``, ``coded3``, ``coded2``: the step, float64, then the codes,
entropy-coded (`fedward.common.entropy_coding`); the step is not the sender's to choose but one that both
sides work out from public constants (`fedward.common.rounding`), and the number says how many bits a
value of pure noise takes at most. They differ in the step and in how their codes are packed. ``diff4``,
``diff3``, ``diff2``: the same body, of a model's difference to one that the receiver holds; the step is the
sender's (`fedward.common.differences`).

Rounding is deterministic: of a noised update it is post-processing and adds no more than half a step.
Decoding checks length, step and finiteness before anything is used.
"""

import struct

import numpy as np
import numpy.typing as npt

from fedward.common.entropy_coding import LARGEST_CODE, pack, unpack
from fedward.common.errors import PayloadRefused, UnknownName

Vector = npt.NDArray[np.float32]
Payload = npt.NDArray[np.uint8]

_MAGIC = b"FWD1"
_HEADER = struct.Struct("<4sB3xQ")
BLOCK = 4096
MAXIMUM_COUNT = 1 << 28
_LARGEST = np.float32(3.4e38)  # a little below float32's: 127 steps of it do not overflow
CODECS = {
    "fp32": 1,
    "int8": 2,
    "coded8": 3,
    "coded4": 4,
    "coded3": 5,
    "coded2": 6,
    "diff4": 7,
    "diff3": 8,
    "diff2": 9,
}
PLAIN_CODECS = ("fp32", "int8")  # those that a payload stands alone in, whatever it holds
DIFFERENCES = ("diff4", "diff3", "diff2")  # of a model that the receiver holds
DOWNLINK_CODECS = (*PLAIN_CODECS, *DIFFERENCES)
UPLINK_CODECS = tuple(name for name in CODECS if name not in DIFFERENCES)
# Bits of a code before it is entropy-coded.
_WIDTHS = {"coded8": 8, "coded4": 8, "coded3": 4, "coded2": 4, "diff4": 8, "diff3": 4, "diff2": 4}
_STEP = struct.Struct("<d")
SMALLEST_STEP, LARGEST_STEP = 1e-30, 1e30  # codes times these are normal float32 values


def codec_id(name: str) -> int:
    """The id of codec `name`.

    Raises:
        UnknownName: there is no such codec.
    """
    if name not in CODECS:
        raise UnknownName(f"There is no codec {name!r}; choose one of {', '.join(CODECS)}.")
    return CODECS[name]


def fixed_codec(downlink: str) -> str:
    """How a study's fixed vectors travel: as its model does, or in int8 where that travels as differences."""
    return downlink if downlink in PLAIN_CODECS else "int8"


def plain_codec_of(payload: Payload) -> str:
    """The codec in which a payload that stands alone says that it is.

    Raises:
        PayloadRefused: it is in none of `PLAIN_CODECS`.
    """
    given = int(payload[4]) if payload.dtype == np.uint8 and payload.ndim == 1 and len(payload) > 4 else 0
    for name in PLAIN_CODECS:
        if CODECS[name] == given:
            return name
    raise PayloadRefused(f"A model that travels in full is in one of {', '.join(PLAIN_CODECS)}; this is not.")


def carried_step(payload: Payload) -> float:
    """The step that stands in a coded payload; `decode` refuses one that is out of range.

    Raises:
        PayloadRefused: the payload is too short for one.
    """
    data = payload[_HEADER.size : _HEADER.size + _STEP.size].tobytes()
    if len(data) != _STEP.size:
        raise PayloadRefused("A coded payload names the step that it was rounded at; this one is cut short.")
    return float(_STEP.unpack(data)[0])


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
    if (step < 0).any() or (codes == np.iinfo(np.int8).min).any():
        raise PayloadRefused("The packed vector's codes or steps are out of range: no encoder gives them.")
    with np.errstate(over="ignore", invalid="ignore"):  # `decode` refuses what is not finite
        return np.asarray(codes * np.repeat(step, BLOCK)[:count], np.float32)


def _encode_coded(vector: Vector, codec: str, step: float) -> bytes:
    codes = np.clip(np.rint(vector.astype(np.float64) / step), -LARGEST_CODE, LARGEST_CODE)
    return _STEP.pack(step) + pack(codes.astype(np.int16), _WIDTHS[codec])


def _decode_coded(body: bytes, count: int, codec: str, step: float) -> Vector:
    if len(body) < _STEP.size or body[: _STEP.size] != _STEP.pack(step):
        raise PayloadRefused(f"The packed vector was not rounded at the agreed step, {step:g}.")
    codes = unpack(body[_STEP.size :], count, _WIDTHS[codec])
    return (codes * np.float64(step)).astype(np.float32)


def _check_step(codec: str, step: float | None) -> None:
    if (codec in _WIDTHS) != (step is not None):
        raise PayloadRefused(
            f"Codec {codec!r} {'needs a step that both sides know' if step is None else 'takes no step'}; "
            "only updates with noise, and differences, are rounded at one."
        )
    if step is not None and not SMALLEST_STEP <= step <= LARGEST_STEP:
        raise PayloadRefused(
            f"A step of {step:g} is out of range; the noise, or the learning rate, is too extreme."
        )


def _check_size(body: bytes, count: int, codec: str) -> None:
    size = 4 * count if codec == "fp32" else 4 * _blocks(count) + count
    if len(body) != size:
        raise PayloadRefused(
            f"The packed vector has {_HEADER.size + len(body)} bytes, which does not fit its {count} values."
        )


def encode(vector: Vector, codec: str, step: float | None = None) -> Payload:
    """Pack a float32 vector, shape (n,), as a uint8 array.

    Args:
        step: what a coded codec rounds at; values beyond 32,767 of it are cut to that. None for the others.

    Raises:
        UnknownName: there is no such codec.
        PayloadRefused: the vector is not finite, or holds values above 3.4e38; or the step does not fit.
    """
    identity = codec_id(codec)
    _check_step(codec, step)
    if not (np.abs(vector) <= _LARGEST).all():
        raise PayloadRefused("A vector with NaN or infinite values is not encoded; lower the learning rate.")
    if step is not None:
        body = _encode_coded(vector, codec, step)
    else:
        body = vector.astype("<f4").tobytes() if codec == "fp32" else _encode_int8(vector)
    return np.frombuffer(_HEADER.pack(_MAGIC, identity, len(vector)) + body, np.uint8)


def decode(payload: Payload, count: int, codec: str, step: float | None = None) -> Vector:
    """Unpack exactly `count` float32 values that were packed with `codec`, and rounded at `step` if coded.

    Raises:
        UnknownName: there is no such codec.
        PayloadRefused: not a uint8 array, another codec, count or step, truncated, too long, codes out of
            range, or not finite.
    """
    identity = codec_id(codec)
    _check_step(codec, step)
    if payload.dtype != np.uint8 or payload.ndim != 1 or len(payload) < _HEADER.size:
        raise PayloadRefused("A packed vector is a flat uint8 array with a header; this is not one.")
    data = payload.tobytes()
    magic, given, claimed = _HEADER.unpack_from(data)
    if magic != _MAGIC or given != identity or data[5:8] != bytes(3):
        raise PayloadRefused(f"The packed vector is not in codec {codec!r} of this version.")
    if claimed != count or count > MAXIMUM_COUNT:
        raise PayloadRefused(f"The packed vector claims {claimed} values where {count} are expected.")
    vector = _decode_body(data[_HEADER.size :], count, codec, step)
    if not np.isfinite(vector).all():
        raise PayloadRefused("The packed vector holds NaN or infinite values.")
    return vector


def _decode_body(body: bytes, count: int, codec: str, step: float | None) -> Vector:
    if step is not None:
        return _decode_coded(body, count, codec, step)
    _check_size(body, count, codec)
    return np.frombuffer(body, "<f4").astype(np.float32) if codec == "fp32" else _decode_int8(body, count)
