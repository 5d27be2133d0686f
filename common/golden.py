"""Golden outputs: a few inputs and the logits that a release gave for them when it was made.

golden.npz holds `inputs` float32 (k, channels, height, width), `logits` float32 (k, classes) and
`tolerance`, a float32 scalar: the largest absolute difference that a machine may show.
"""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedward.common.errors import GoldenRefused
from fedward.common.npz import read_rows

_LIMIT_BYTES = 64 << 20  # of each array, decompressed


@dataclass(frozen=True)
class Golden:
    """Inputs (k, channels, height, width), logits (k, classes), both float32, and the tolerance."""

    inputs: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    tolerance: float


def golden_bytes(golden: Golden) -> bytes:
    """golden.npz; equal arrays give equal bytes (`numpy.savez` writes no time)."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        inputs=golden.inputs.astype(np.float32),
        logits=golden.logits.astype(np.float32),
        tolerance=np.float32(golden.tolerance),
    )
    return buffer.getvalue()


def read_golden(data: bytes) -> Golden:
    """Read golden.npz.

    Raises:
        GoldenRefused: malformed, empty, of other types or shapes, or with a value that is not finite.
    """
    try:
        inputs, logits, tolerance = (
            read_rows(io.BytesIO(data), name, _LIMIT_BYTES) for name in ("inputs", "logits", "tolerance")
        )
    except ValueError as error:
        raise GoldenRefused(f"The golden outputs cannot be read: {error}.") from error
    if not all(
        array.dtype == np.float32 and np.isfinite(array).all() for array in (inputs, logits, tolerance)
    ):
        raise GoldenRefused("The golden outputs must be finite float32 numbers.")
    is_shaped = inputs.ndim == 4 and logits.ndim == 2 and tolerance.ndim == 0
    if not is_shaped or not 0 < len(inputs) == len(logits) or tolerance < 0:
        raise GoldenRefused(
            "The golden outputs must be as many inputs as logits, and a tolerance of 0 or more."
        )
    return Golden(inputs, logits, float(tolerance))
