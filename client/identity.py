"""By what a data set is known: keyed hashes of its images, so that a new name does not mint a budget.

An image's digest is HMAC-SHA256 (RFC 2104) of its pixels under a key that never leaves the site, cut to
16 bytes. Without the key a stolen list says nothing of the images, and two sites' lists cannot be matched.
A re-encoded, cropped or otherwise changed image has another digest: that is not noticed.
"""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedward.common.datasets import MIN_SIDE
from fedward.common.errors import DatasetRefused, LedgerRefused
from fedward.common.files import read_bounded, write_atomically

KEY_BYTES = 32
DIGEST_BYTES = 16
_MOST_IMAGES = 1 << 26
_SHORTEST_IMAGE = MIN_SIDE * MIN_SIDE  # bytes


class DataIdentity:
    """A site's keyed hash of images."""

    def __init__(self, key: bytes) -> None:
        """Hash under `key`, 32 secret bytes.

        Raises:
            LedgerRefused: the key has another length.
        """
        if len(key) != KEY_BYTES:
            raise LedgerRefused(
                f"The site's image key has {len(key)} bytes instead of {KEY_BYTES}: put back its newest copy."
            )
        self._key = key

    @classmethod
    def open(cls, path: Path) -> "DataIdentity":
        """The identity whose key is kept at `path`.

        Raises:
            LedgerRefused: it is missing or damaged.
        """
        return cls(read_bounded(path, KEY_BYTES, refusal=LedgerRefused))

    @classmethod
    def create(cls, path: Path) -> "DataIdentity":
        """A new random key, kept at `path`, readable by its owner only."""
        write_atomically(path, os.urandom(KEY_BYTES), 0o600)
        return cls.open(path)

    def digests(self, images: npt.NDArray[np.uint8]) -> frozenset[bytes]:
        """Of images uint8 (n, ...): at most n, for equal images have one. Pixels count, not their shape.

        Raises:
            DatasetRefused: no images, or not of bytes.
        """
        if images.dtype != np.uint8 or images.ndim < 2:
            raise DatasetRefused(f"Images must be uint8 (n, ...), not {images.dtype} {images.shape}.")
        return frozenset(self._digest(image.tobytes()) for image in images)

    def subkey(self, purpose: bytes) -> bytes:
        """32 secret bytes for another purpose of the site; the shortest image is longer than a purpose.

        Raises:
            ValueError: a purpose that could be an image's pixels.
        """
        if not 0 < len(purpose) < _SHORTEST_IMAGE:
            raise ValueError(f"A purpose has 1 to {_SHORTEST_IMAGE - 1} bytes.")
        return hmac.digest(self._key, purpose, hashlib.sha256)

    def _digest(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, hashlib.sha256)[:DIGEST_BYTES]


def pack(digests: Iterable[bytes]) -> bytes:
    """Sorted digests end to end; equal sets give equal bytes.

    Raises:
        DatasetRefused: none, too many, or of another length.
    """
    ordered = sorted(set(digests))
    if not 0 < len(ordered) <= _MOST_IMAGES:
        raise DatasetRefused(f"A data set has between 1 and {_MOST_IMAGES} images, not {len(ordered)}.")
    if any(len(digest) != DIGEST_BYTES for digest in ordered):
        raise DatasetRefused(f"An image's digest has {DIGEST_BYTES} bytes.")
    return b"".join(ordered)


def unpack(path: Path, sha256: str) -> frozenset[bytes]:
    """The digests that `pack` gave, kept at `path` and anchored in a ledger by their hash.

    Raises:
        LedgerRefused: the file is missing, or is not the one that was anchored.
    """
    data = read_bounded(path, DIGEST_BYTES * _MOST_IMAGES, refusal=LedgerRefused)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LedgerRefused(
            f"{path} is not the list of images that the ledger names: put back its newest copy."
        )
    return frozenset(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))
