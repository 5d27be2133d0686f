"""npz archives read as hostile input, and written so that equal arrays give equal bytes.

An npz is a zip of npy members (NumPy Enhancement Proposal 1). Everything that a member claims about its size
is checked before memory is set aside for it, and nothing in it is ever unpickled.
"""

import hashlib
import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fedward.common.errors import DatasetRefused

# The largest sets that a laptop can hold pass: 112 120 images of 64 x 64 are .46 GB.
MAX_BYTES = 4 * 2**30
MAX_MEMBERS = 256
# Everything that zipfile, its decompressors and numpy's header parser raise on damaged bytes.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,  # an encrypted member, an unknown compression, too deep a header
    SyntaxError,
    TypeError,
    ValueError,
)
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Archive:
    """What was read: the wanted arrays by name, all members' names, and the whole file's SHA-256."""

    arrays: dict[str, npt.NDArray[Any]]
    names: tuple[str, ...]
    sha256: str


def read_archive(path: Path, wanted: Iterable[str], max_bytes: int = MAX_BYTES) -> Archive:
    """Read those of the `wanted` arrays that the npz at `path` holds.

    Args:
        path: the file.
        wanted: names without ``.npy``; the others are listed but not read.
        max_bytes: the most that the file, and the wanted arrays together, may occupy.

    Raises:
        DatasetRefused: absent, a folder, not a zip, cut short, damaged, too large, or holding Python objects.
    """
    _check_regular_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return _read_zip(file, path, tuple(wanted), max_bytes, digest)
    except MemoryError as error:
        raise DatasetRefused(f"{path} does not fit into this machine's memory.") from error
    except _DAMAGE as error:
        raise DatasetRefused(f"{path} {_what_is_wrong(path)}; fetch it again.") from error


def archive_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The npz that holds `arrays` in the given order, uncompressed and without times: equal in, equal out."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # else it tells on which system the file was written
            archive.writestr(info, member.getvalue())
    return whole.getvalue()


def _check_regular_file(path: Path, max_bytes: int) -> None:
    try:
        if path.is_dir():
            raise DatasetRefused(f"{path} is a folder; name the npz file in it.")
        if not path.exists():
            raise DatasetRefused(f"{path} does not exist.")
        if not path.is_file():  # a pipe or a device could block or never end
            raise DatasetRefused(f"{path} is not a regular file.")
        if path.stat().st_size > max_bytes:
            raise DatasetRefused(f"{path} is larger than the {max_bytes} bytes allowed.")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DatasetRefused(f"{str(path)!r} cannot be read: {error}.") from error


def _what_is_wrong(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not start:
        return "is empty"
    return "is cut short or damaged" if start == b"PK\x03\x04" else "is not an npz (zip) file"


def _read_zip(file: IO[bytes], path: Path, wanted: tuple[str, ...], max_bytes: int, digest: str) -> Archive:
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = _members(archive, path)
        chosen = {name: members[name] for name in wanted if name in members}
        total = sum(info.file_size for info in chosen.values())
        if total > max_bytes:
            raise DatasetRefused(f"{path} unpacks to {total} bytes, more than the {max_bytes} allowed.")
        arrays = {name: _read_member(archive, info, path) for name, info in chosen.items()}
    return Archive(arrays, tuple(members), digest)


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(infos) > MAX_MEMBERS or len(members) != len(infos):
        raise DatasetRefused(f"{path} holds too many arrays, or two of one name.")
    return members


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> npt.NDArray[Any]:
    with archive.open(info) as member:
        _check_header(member, info, path)
    with archive.open(info) as member:  # again from its start: a zip member seeks backwards slowly
        array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _check_header(member: IO[bytes], info: zipfile.ZipInfo, path: Path) -> None:
    """Refuse a header that promises another size than the member has, before numpy allocates by it."""
    shape, _, dtype = _HEADER_READERS[np.lib.format.read_magic(member)](member)
    if dtype.hasobject:
        raise DatasetRefused(f"{path}: {info.filename} holds Python objects, which are never loaded.")
    if min(shape, default=0) < 0 or member.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
        raise DatasetRefused(f"{path}: {info.filename} is not as long as its header says; fetch it again.")
