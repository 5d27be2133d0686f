"""Arrays out of a hostile npz (a zip of npy files): sizes are known and bounded before anything is read.

`numpy.load` allocates whatever a header asks for; here the header is read first, and rows that are not
asked for are skipped. Pickled objects are never read.
"""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

_MOST_MEMBERS = 1000
# What zipfile and numpy's header reader are known to raise on damaged input, beside ValueError.
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
)


@dataclass(frozen=True)
class ArrayHeader:
    """What an array will be: its shape and type, and whether its first axis runs fastest."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool


def array_headers(file: BinaryIO) -> dict[str, ArrayHeader]:
    """Every array of an npz, by name, without its data.

    Raises:
        ValueError: not an npz, damaged, or more than 1000 arrays.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            if len(names) > _MOST_MEMBERS:
                raise ValueError("it holds too many arrays")
            return {name.removesuffix(".npy"): _header_in(archive, name) for name in names}
    except _FAULTS as error:
        raise ValueError(f"it is no readable npz ({error or type(error).__name__})") from error


def read_rows(
    file: BinaryIO, name: str, limit_bytes: int, rows: tuple[int, int] | None = None
) -> npt.NDArray[Any]:
    """One array of an npz, or some rows of it.

    Args:
        file: the npz.
        name: the array's name.
        limit_bytes: the most that is read.
        rows: the first row and the one after the last; None reads them all.

    Raises:
        ValueError: no such array, no such rows, too large, truncated, damaged, or of Python objects.
    """
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
            return _rows_of(member, limit_bytes, rows)
    except _FAULTS as error:
        raise ValueError(f"its array {name} cannot be read ({error or type(error).__name__})") from error


def _header_in(archive: zipfile.ZipFile, name: str) -> ArrayHeader:
    with archive.open(name) as member:
        return _header_of(member)


def _header_of(member: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"arrays of format {version} are not read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(member)
    if dtype.hasobject or dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise ValueError("it holds Python objects, or no numbers")
    return ArrayHeader(shape, dtype, is_fortran)


def _rows_of(member: IO[bytes], limit_bytes: int, rows: tuple[int, int] | None) -> npt.NDArray[Any]:
    header = _header_of(member)
    if rows is None:
        shape, skipped = header.shape, 0
    else:
        shape, skipped = _cut(header, rows)
    row_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
    size = math.prod(shape) * header.dtype.itemsize
    if size > limit_bytes:
        raise ValueError(f"its {size} bytes are more than the {limit_bytes} allowed at once")
    member.seek(skipped * row_bytes, 1)
    data = member.read(size)  # when cut short, too small a buffer for the shape
    return np.ndarray(shape, header.dtype, data, order="F" if header.is_fortran else "C")


def _cut(header: ArrayHeader, rows: tuple[int, int]) -> tuple[tuple[int, ...], int]:
    """The shape of some rows, and how many are skipped before them."""
    first, end = rows
    if header.is_fortran or not header.shape or not 0 <= first < end <= header.shape[0]:
        raise ValueError(f"it has no rows {first} to {end - 1} (its shape is {header.shape})")
    return (end - first, *header.shape[1:]), first
