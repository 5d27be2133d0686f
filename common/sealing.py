"""Sealing: a payload that only the holder of one private key can read, now and with a quantum computer.

    sealed = X25519 ephemeral public key (32) | ML-KEM-768 ciphertext (1088) | AES-256-GCM ciphertext and tag

A key is agreed twice, by X25519 (RFC 7748) with a fresh key and by ML-KEM-768 (FIPS 203), and both secrets
go into one HKDF-SHA256 (RFC 5869): whoever wants the key has to break both. This is the hybrid of SP 800-56C
rev. 2, section 2 (Z' = Z || T), with the whole transcript as its context: the digest of the header that the
payload travels under, the ephemeral key, the ML-KEM ciphertext and the receiver's two public keys. So a
sealed payload opens under its own header and for its own receiver only. The form follows HPKE's base mode
(RFC 9180) with one message a key: the nonce comes out of the HKDF, too, and no key is ever used twice.

Who sealed is not proven here: the envelope's signature is for that (`fedward.common.envelope`).
"""

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedward.common.errors import EnvelopeRefused, TrustRefused

X25519_BYTES = 32  # RFC 7748
MLKEM768_BYTES = 1184  # FIPS 203, table 3: an encapsulation key
X25519_SEED_BYTES, MLKEM768_SEED_BYTES = 32, 64
_CIPHERTEXT_BYTES = 1088  # FIPS 203, table 3
_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 12, 16
_LABEL = b"fedward.sealing/1"
SEAL_BYTES = X25519_BYTES + _CIPHERTEXT_BYTES + _TAG_BYTES  # a sealed payload is so much longer


@dataclass(frozen=True)
class PublicSealingKey:
    """The public half of a sealing key: both keys, of which neither is used alone.

    Attributes:
        x25519: 32 raw bytes.
        mlkem768: 1184 raw bytes.
    """

    x25519: bytes
    mlkem768: bytes

    def __post_init__(self) -> None:
        """Refuse what is no pair of keys: another length, or an ML-KEM key that is no encapsulation key."""
        try:
            X25519PublicKey.from_public_bytes(self.x25519)
            MLKEM768PublicKey.from_public_bytes(self.mlkem768)
        except ValueError as error:
            raise TrustRefused(
                "What should be a sealing key is no pair of X25519 and ML-KEM-768 keys: ask its owner again."
            ) from error

    @property
    def keyid(self) -> str:
        """SHA-256, in hex, of the two raw public keys one after the other."""
        return hashlib.sha256(self.x25519 + self.mlkem768).hexdigest()

    def seal(self, plaintext: bytes, header: bytes) -> bytes:
        """`plaintext` for this key's holder, bound to `header`; fresh randomness, so never the same bytes.

        Raises:
            EnvelopeRefused: the key is one with which nothing can be agreed.
        """
        ephemeral = X25519PrivateKey.generate()
        public = ephemeral.public_key().public_bytes_raw()
        secret, ciphertext = MLKEM768PublicKey.from_public_bytes(self.mlkem768).encapsulate()
        try:
            agreed = ephemeral.exchange(X25519PublicKey.from_public_bytes(self.x25519))
        except ValueError as error:  # a point of small order gives zeros: RFC 7748, section 6.1
            raise EnvelopeRefused("The receiver's sealing key is of no use: ask for a new one.") from error
        key, nonce = _key_and_nonce(secret + agreed, header, public, ciphertext, self)
        return public + ciphertext + AESGCM(key).encrypt(nonce, plaintext, header)


class SealingKey:
    """The private half, made from its two seeds."""

    def __init__(self, x25519_seed: bytes, mlkem768_seed: bytes) -> None:
        """Derive both keys from their seeds (32 and 64 bytes).

        Raises:
            ValueError: a seed of another length.
        """
        self._x25519 = X25519PrivateKey.from_private_bytes(x25519_seed)
        self._mlkem768 = MLKEM768PrivateKey.from_seed_bytes(mlkem768_seed)

    def public(self) -> PublicSealingKey:
        """The public half, to be announced (`fedward.common.sealing_keys`)."""
        return PublicSealingKey(
            self._x25519.public_key().public_bytes_raw(), self._mlkem768.public_key().public_bytes_raw()
        )

    def unseal(self, sealed: bytes, header: bytes) -> bytes:
        """What `PublicSealingKey.seal` sealed under the same header.

        Raises:
            EnvelopeRefused: sealed for another key, under another header, cut, or changed in any byte.
        """
        if len(sealed) < SEAL_BYTES:
            raise EnvelopeRefused("A sealed message is cut short; ask for it again.")
        public, ciphertext = sealed[:X25519_BYTES], sealed[X25519_BYTES : X25519_BYTES + _CIPHERTEXT_BYTES]
        try:
            agreed = self._x25519.exchange(X25519PublicKey.from_public_bytes(public))
            secret = self._mlkem768.decapsulate(ciphertext)
            key, nonce = _key_and_nonce(secret + agreed, header, public, ciphertext, self.public())
            return AESGCM(key).decrypt(nonce, memoryview(sealed)[SEAL_BYTES - _TAG_BYTES :], header)
        except (InvalidTag, ValueError) as error:
            raise EnvelopeRefused(
                "A sealed message does not open: it was changed, or sealed for another key or header; "
                "ask for it again."
            ) from error


def _key_and_nonce(
    secrets: bytes, header: bytes, public: bytes, ciphertext: bytes, to: PublicSealingKey
) -> tuple[bytes, bytes]:
    """AES key and nonce; every part of `info` has one length, so no two transcripts spell the same."""
    info = _LABEL + hashlib.sha256(header).digest() + public + ciphertext + to.x25519 + to.mlkem768
    drawn = HKDF(SHA256(), _KEY_BYTES + _NONCE_BYTES, salt=None, info=info).derive(secrets)
    return drawn[:_KEY_BYTES], drawn[_KEY_BYTES:]
