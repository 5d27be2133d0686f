"""The generator key of each round, kept from before the charge until the reply is stored, then destroyed.

A round that crashed between the two is run again with the same key, and so gives the same reply bit for
bit; a second key for the same charge would be a second release of the same query. Overwriting a file does
not scrub every disk: whoever reads a destroyed key off the medium could subtract the noise, so the state
folder belongs on an encrypted volume.
"""

import os
from pathlib import Path

from fedward.common.errors import RequestRefused
from fedward.common.files import read_bounded, sync_folder, write_atomically
from fedward.common.randomness import KEY_BYTES, KeyedGenerator


class RoundKeys:
    """Fresh keys of the operating system's, one file a round, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        """Keep keys in `folder`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def open(self, name: str, is_charged: bool) -> KeyedGenerator:
        """The round's generator: a new key before the charge, the same one after a crash.

        Args:
            name: hex digest that stands for the round.
            is_charged: whether the ledger holds the round's charge already.

        Raises:
            RequestRefused: the round was charged and its key is gone: only a new round goes on.
        """
        path = self._folder / f"{name}.key"
        if not path.exists():
            if is_charged:
                raise RequestRefused(
                    "The round was charged, but its generator's key is gone; ask for a new round."
                )
            write_atomically(path, os.urandom(KEY_BYTES), 0o600)
        return KeyedGenerator(read_bounded(path, KEY_BYTES, refusal=RequestRefused))

    def destroy(self, name: str) -> None:
        """Overwrite and remove the round's key."""
        path = self._folder / f"{name}.key"
        if path.exists():
            with path.open("r+b") as file:
                file.write(bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            sync_folder(self._folder)
