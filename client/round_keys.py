"""The generator key of each round, kept from before the charge until the reply is stored, then destroyed.

A round that crashed between the two is run again with the same key, and so gives the same reply bit for
bit; a second key for the same charge would be a second release of the same query. Overwriting a file does
not scrub every disk: whoever reads a destroyed key off the medium could subtract the noise, so the state
folder belongs on an encrypted volume.
"""

import os
from pathlib import Path

from fedward.common.errors import RequestRefused
from fedward.common.files import make_folder, refused_output, sync_folder, write_atomically
from fedward.common.randomness import KEY_BYTES, KeyedGenerator

_DESTROYED = bytes(KEY_BYTES)


class RoundKeys:
    """Fresh keys of the operating system's, one file a round, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        """Keep keys in `folder`.

        Raises:
            OutputRefused: it cannot be made.
        """
        make_folder(folder, 0o700)
        self._folder = folder

    def open(self, name: str, is_charged: bool) -> KeyedGenerator:
        """The round's generator: a new key before the charge, the same one after a crash.

        Args:
            name: hex digest that stands for the round.
            is_charged: whether the ledger holds the round's charge already.

        Raises:
            RequestRefused: the round was charged and its key is gone: only a new round goes on.
            OutputRefused: a new key cannot be written.
        """
        key = self._read(name)
        if key is None:
            if is_charged:
                raise RequestRefused(
                    "The round was charged, but its generator's key is gone; ask for a new round."
                )
            key = os.urandom(KEY_BYTES)
            write_atomically(self._path(name), key, 0o600)
        return KeyedGenerator(key)

    def holds(self, name: str) -> bool:
        """Whether the round has a key."""
        return self._read(name) is not None

    def destroy(self, name: str) -> None:
        """Overwrite and remove the round's key, if there is one.

        Raises:
            OutputRefused: it cannot be overwritten or removed.
        """
        path = self._path(name)
        if not path.exists():
            return
        try:
            with path.open("r+b") as file:
                file.write(_DESTROYED)
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            sync_folder(self._folder)
        except OSError as error:
            raise refused_output(path, error) from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.key"

    def _read(self, name: str) -> bytes | None:
        """The key; None where it is missing, or where a crash left it overwritten but not yet removed."""
        path = self._path(name)
        key = path.read_bytes() if path.exists() else b""
        return key if len(key) == KEY_BYTES and key != _DESTROYED else None
