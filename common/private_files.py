"""Secrets in files: a folder for one process at a time, and files that only their owner may read."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fedward.common.errors import TrustRefused
from fedward.common.files import read_bounded, refused_output, write_atomically


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on `folder`, made with mode 0700 if need be: two first runs must not make two keys.

    Raises:
        OutputRefused: it cannot be made or opened.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise refused_output(folder, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_private(path: Path, limit_bytes: int) -> bytes:
    """A secret file's content.

    Raises:
        TrustRefused: missing, larger than `limit_bytes`, or others than its owner may read or change it.
    """
    data = read_bounded(path, limit_bytes, refusal=TrustRefused)
    if path.stat().st_mode & 0o077:
        raise TrustRefused(
            f"{path} may be read or changed by others: run `chmod 600` on it, or make new keys."
        )
    return data


def write_private_once(path: Path, data: bytes) -> None:
    """Write a secret file of mode 0600, never over another; call it `alone_in` its folder.

    Raises:
        TrustRefused: there is something of that name.
        OutputRefused: it cannot be written.
    """
    if os.path.lexists(path):
        raise TrustRefused(f"{path} exists already; keys are never overwritten: name another folder.")
    write_atomically(path, data, mode=0o600)
