"""The keyed generator: every random number of a study comes from one stream cipher (ChaCha20, RFC 8439).

In a hospital the key is a fresh one of the operating system's for each round and is destroyed once the
reply is stored. In a simulation or a ``--test`` state folder it is derived from the seed, so the run can
be repeated bit for bit; such noise protects nobody, and the release says so.
"""

import hashlib
import hmac
import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy.special import ndtri

KEY_BYTES = 32
_BLOCK = 1 << 16


class KeyedGenerator:
    """A deterministic generator of uniform, Gaussian and Poisson-sampling draws from a 256-bit key.

    Two generators with the same key give the same sequence on every machine up to the last bit of
    `scipy.special.ndtri`. Draws advance the stream; `derive` does not.
    """

    def __init__(self, key: bytes) -> None:
        """Start the stream of `key`, 32 bytes.

        Raises:
            ValueError: the key has another length.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a generator key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    @classmethod
    def from_system(cls) -> "KeyedGenerator":
        """A generator with a fresh key of the operating system's."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: int, *labels: str | int) -> "KeyedGenerator":
        """A reproducible generator for simulations: the key is a hash of `seed` and `labels`."""
        return cls(hashlib.sha256(f"fedward seed {int(seed)}".encode()).digest()).derive(*labels)

    @property
    def key_digest(self) -> str:
        """SHA-256 of the key in hex: names the key in a ledger without revealing it."""
        return hashlib.sha256(b"fedward key digest" + self._key).hexdigest()

    def derive(self, *labels: str | int) -> "KeyedGenerator":
        """An independent generator for a purpose: HMAC-SHA256 of length-prefixed labels under this key."""
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for label in labels:
            text = f"{type(label).__name__}:{label}".encode()
            mac.update(len(text).to_bytes(4, "big") + text)
        return KeyedGenerator(mac.digest())

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes of the stream."""
        return bytes(self._next(count))

    def _next(self, count: int) -> bytearray:
        """Enciphered zeros, written block by block where they stay: fresh megabytes cost more than they."""
        out = bytearray(count)
        whole, zeros = memoryview(out), memoryview(bytes(_BLOCK))
        for start in range(0, count, _BLOCK):
            block = whole[start : start + _BLOCK]
            self._stream.update_into(zeros[: len(block)], block)
        return out

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count` 64-bit words, little-endian."""
        return np.frombuffer(self._next(8 * count), dtype="<u8").astype(np.uint64, copy=False)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """`count` uniforms on the open interval (0, 1): midpoints of 2^52 equal cells.

        Not 2^53: their midpoints are no doubles above 1/2, and the last would round to 1.
        """
        return ((self.words(count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """`count` standard Gaussian draws, by inversion of 127-bit uniforms on (0, 1/2) and a sign.

        The uniform keeps its full relative precision however small it is, so that even far out in the tail
        draws lie 2^-53 apart: coarser ones would skip values of the noise grid, which would then tell
        what the sum is not. The tail ends at 13 standard deviations, with a mass of 2^-127 beyond.
        """
        drawn = self._next(16 * count)
        high = np.frombuffer(drawn, dtype="<u8")[::2].astype(np.uint64, copy=False)
        low = np.frombuffer(drawn, dtype="<u4").reshape(count, 4)[:, 2:]
        half = low[:, 1].astype(np.float64)
        half *= 2.0**32
        half += low[:, 0]  # rounds once, as a 64-bit word's own conversion does, which takes thrice as long
        half += 0.5
        half *= 2.0**-64
        half += (high >> np.uint64(1)).view(np.int64)
        half *= 2.0**-64
        np.minimum(half, 0.5, out=half)
        ndtri(half, out=half)
        bits = half.view(np.uint64)
        bits ^= ~high << np.uint64(63)  # the sign bit: negative where the lowest bit is 1
        return half

    def poisson_sample(self, population: int, rate: float) -> npt.NDArray[np.int64]:
        """Indices of a Poisson sample: each of `population` units enters alone with probability `rate`.

        With rate 1 every unit enters. Shape: (k,), sorted; k is random and may be 0.
        """
        return np.flatnonzero(self.uniform(population) < rate).astype(np.int64)

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """A uniform permutation of range(count) (ties of 64-bit words are beyond any practice)."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64)
