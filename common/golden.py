"""Golden outputs: a few inputs and the logits that a release gave for them when it was made.

golden.npz holds `inputs` float32 (k, channels, height, width), `logits` float32 (k, classes) and
`tolerance`, a float32 scalar: the largest absolute difference that a machine may show. Where the study found
that the release may also compute in int8 (`fedward.common.graph_forms`), `form_tolerance` is the largest
difference in such a form; without it no other form is used.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward.common.errors import GoldenRefused
from fedward.common.npz import array_headers, read_rows

_NEEDED, _OPTIONAL = ("inputs", "logits", "tolerance"), {"form_tolerance"}
_LIMIT_BYTES = 64 << 20  # of each array, decompressed


@dataclass(frozen=True)
class Golden:
    """Inputs (k, channels, height, width), logits (k, classes), both float32, and the tolerances."""

    inputs: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    tolerance: float
    form_tolerance: float | None = None


def golden_bytes(golden: Golden) -> bytes:
    """golden.npz; equal arrays give equal bytes (`numpy.savez` writes no time)."""
    arrays: dict[str, Any] = {
        "inputs": golden.inputs.astype(np.float32),
        "logits": golden.logits.astype(np.float32),
        "tolerance": np.float32(golden.tolerance),
    }
    if golden.form_tolerance is not None:
        arrays["form_tolerance"] = np.float32(golden.form_tolerance)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_golden(data: bytes) -> Golden:
    """Read golden.npz.

    Raises:
        GoldenRefused: malformed, empty, of other types or shapes, or with a value that is not finite.
    """
    arrays = _arrays(data)
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()):
        raise GoldenRefused("The golden outputs must be finite float32 numbers.")
    inputs, logits = arrays.pop("inputs"), arrays.pop("logits")
    is_shaped = inputs.ndim == 4 and logits.ndim == 2 and all(one.ndim == 0 for one in arrays.values())
    if not is_shaped or not 0 < len(inputs) == len(logits) or any(one < 0 for one in arrays.values()):
        raise GoldenRefused(
            "The golden outputs must be as many inputs as logits, and a tolerance of 0 or more."
        )
    return Golden(inputs, logits, **{name: float(one) for name, one in arrays.items()})


def _arrays(data: bytes) -> dict[str, npt.NDArray[Any]]:
    try:
        more = _OPTIONAL.intersection(array_headers(io.BytesIO(data)))
        return {name: read_rows(io.BytesIO(data), name, _LIMIT_BYTES) for name in (*_NEEDED, *more)}
    except ValueError as error:
        raise GoldenRefused(f"The golden outputs cannot be read: {error}.") from error
