"""Files that are never half there: canonical JSON, atomic writes, bounded reads, the user's own folder."""

import contextlib
import errno
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO

from fedward.common.errors import OutputRefused, PayloadRefused, Refusal

_CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than allowed here",
    errno.EROFS: "it is on a read-only file system",
    errno.EACCES: "its folder may not be written by this user",
    errno.EPERM: "its folder may not be written by this user",
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "a part of its path is not a folder",
    errno.EISDIR: "there is a folder of that name",
    errno.ENAMETOOLONG: "its name is too long",
    errno.EIO: "the disk reports a fault",
}


def canonical_json(obj: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, no NaN or infinity.

    Raises:
        ValueError: for NaN, an infinity, or text that is not valid Unicode.
        TypeError: for a value, or a mixture of keys, that JSON does not have.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def parse_canonical(data: bytes) -> Any:
    """The value that `data` spells, if it is exactly that value's `canonical_json`.

    So no two byte strings mean the same thing, no key stands twice, and whatever byte of a signed
    document is changed, the document is refused or its digest differs.

    Raises:
        ValueError: not JSON, or JSON in another spelling.
    """
    try:
        value = json.loads(data)
        spelled = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if spelled != data:
        raise ValueError("it is not canonical JSON")
    return value


def config_folder() -> Path:
    """The user's own folder: $FEDWARD_CONFIG, else $XDG_CONFIG_HOME/fedward, else ~/.config/fedward."""
    if own := os.environ.get("FEDWARD_CONFIG"):
        return Path(own)
    if shared := os.environ.get("XDG_CONFIG_HOME"):
        return Path(shared) / "fedward"
    return Path.home() / ".config" / "fedward"


def refused_output(path: Path, error: OSError) -> OutputRefused:
    """The refusal that says why `path` cannot be written and what to do."""
    cause = _CAUSES.get(error.errno or 0, error.strerror or str(error))
    return OutputRefused(f"{path} cannot be written: {cause}; free it or name another place.")


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make `folder`, and its parents, where they are missing; the umask narrows `mode`, which is its own.

    Raises:
        OutputRefused: it cannot be made.
    """
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise refused_output(folder, error) from error


def sync_folder(folder: Path) -> None:
    """Put a folder's entries (a new name, a rename) on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` to `path`, so that a crash leaves the old file or the whole new one.

    The folder must exist. `mode` is narrowed by the process's umask.

    Raises:
        OutputRefused: the disk is full, the folder is missing or may not be written, and so on; nothing
            half-written is left behind.
    """
    draft = path.parent / f".draft-{secrets.token_hex(8)}"
    try:
        try:
            _write_synced(draft, data, mode)
            draft.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise refused_output(path, error) from error


def _write_synced(path: Path, data: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_regular(
    path: Path, *, refusal: type[Refusal] = PayloadRefused, follow_links: bool = True
) -> BinaryIO:
    """A regular file opened for reading; `follow_links` is about a symbolic link in the path's last part.

    Raises:
        refusal: missing, unreadable, or not a regular file (a folder, pipe, device, link).
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        file = open(os.open(path, flags), "rb")  # noqa: SIM115 - the caller closes it
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise refusal(f"{path} cannot be read: {_why_unreadable(error)}.") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise refusal(f"{path} is not a regular file.")
    return file


def read_bounded(
    path: Path, limit_bytes: int, *, refusal: type[Refusal] = PayloadRefused, follow_links: bool = True
) -> bytes:
    """The whole of a regular file, if it holds at most `limit_bytes`; a larger one is not read on.

    Raises:
        refusal: larger, or whatever `open_regular` refuses.
    """
    with open_regular(path, refusal=refusal, follow_links=follow_links) as file:
        try:
            # No more than there is: the reader sets the whole of what is asked for aside at once.
            data = file.read(min(limit_bytes, os.fstat(file.fileno()).st_size) + 1)
        except OSError as error:
            raise refusal(f"{path} cannot be read: {_why_unreadable(error)}.") from error
    if len(data) > limit_bytes:
        raise refusal(f"{path} is larger than the {limit_bytes} bytes allowed.")
    return data


def _why_unreadable(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "it is a link"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
