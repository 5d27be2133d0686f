"""A bundle's four files as one tar, in exactly one way: fixed order, no owner, no time (POSIX ustar).

There is one tar for given files and no other is read, so a changed byte of a header or of the padding is
refused like one of the files.
"""

import io
import tarfile
from collections.abc import Mapping

_BLOCK = tarfile.BLOCKSIZE
_SIZE_FIELD = slice(124, 135)


def tar_of(files: dict[str, bytes]) -> bytes:
    """The tar of `files`, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def files_of(tar: bytes, limits_bytes: Mapping[str, int]) -> dict[str, bytes]:
    """The files that `tar_of` packed, in the order of `limits_bytes`, none larger than its limit.

    Only the sizes are read from the headers; all else of them is compared with what `tar_of` writes.

    Raises:
        ValueError: anything but the tar of exactly these files.
    """
    files: dict[str, bytes] = {}
    start = 0
    for name, limit in limits_bytes.items():
        size = int(tar[start : start + _BLOCK][_SIZE_FIELD], 8)
        if not 0 <= size <= limit:
            raise ValueError(f"{name} is larger than the {limit} bytes allowed")
        start += _BLOCK
        files[name] = tar[start : start + size]
        start += -(-size // _BLOCK) * _BLOCK
    if tar_of(files) != tar:
        raise ValueError("it is not the one tar of a bundle's files")
    return files
