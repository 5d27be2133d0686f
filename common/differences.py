"""The model's way down as the difference to the one that hospitals hold: their replica.

A round's difference is rounded at a fixed part of its own root mean square, r, and entropy-coded. What the
hospitals decode is the next replica, and the next difference is taken to that, never to the exact model: what
one round's rounding leaves out is in the next round's difference. So the replica stays within half a step of
the model, and errors do not add up (error feedback, Karimireddy et al. 2019, arXiv 1901.09847; at the server,
Tang et al. 2019, arXiv 1905.05957). With steps of r*part the error's norm is at most part/2 of the
difference's: a model that stands still is reached. Of Gaussian differences the error has a deviation of
.08 r, .16 r and .32 r.

The step travels with the payload. A model is made of noised updates and public data, so neither its
differences nor their size tell anything that was not charged. Values that did not change are coded as zeros,
which cost next to nothing.

Both sides add in float32, value by value, so that a replica is the same to the bit everywhere; it is named by
the SHA-256 of its little-endian float32 bytes.
"""

import hashlib
import math

import numpy as np

from fedward.common.codec import SMALLEST_STEP, Payload, Vector, carried_step, decode, encode
from fedward.common.errors import PayloadRefused

PARTS = {"diff4": 9 / 32, "diff3": 9 / 16, "diff2": 9 / 8}  # of the difference's root mean square
_STEP_BITS = 8


def replica_digest(model: Vector) -> str:
    """The name of a model, float32 (n,): 64 hexadecimal digits."""
    return hashlib.sha256(model.astype("<f4").tobytes()).hexdigest()


def encode_difference(model: Vector, replica: Vector, codec: str) -> Payload:
    """Pack what leads from `replica` to about `model`, both float32 (n,), in one of `PARTS`.

    Raises:
        PayloadRefused: the difference is not finite, or too large.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # `encode` refuses what is not finite
        difference = (model - replica).astype(np.float32)
    return encode(difference, codec, _step(difference, codec))


def decode_difference(payload: Payload, replica: Vector, codec: str) -> Vector:
    """The next replica, float32 (n,).

    Raises:
        PayloadRefused: as `codec.decode`, or the sum is not finite.
    """
    change = decode(payload, len(replica), codec, carried_step(payload))
    with np.errstate(over="ignore"):
        model = (replica + change).astype(np.float32)
    if not np.isfinite(model).all():
        raise PayloadRefused("The difference leads to a model with infinite values.")
    return model


def _step(difference: Vector, codec: str) -> float:
    """A part of the root mean square, to eight bits: a resumed study, whose machine may round a long sum's
    last bits otherwise, sends the same difference again.
    """
    square = float(np.mean(np.square(difference, dtype=np.float64))) if len(difference) else 0.0
    if square == 0.0 or not math.isfinite(square):
        return 1.0
    fraction, exponent = math.frexp(PARTS[codec] * math.sqrt(square))
    rounded = math.ldexp(math.floor(math.ldexp(fraction, _STEP_BITS)), exponent - _STEP_BITS)
    return max(rounded, SMALLEST_STEP)
