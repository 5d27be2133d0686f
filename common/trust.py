"""Whom this machine believes: the pinned trust file, a JSON list of public keys.

    [{"name": "study office", "keyid": "<hex>", "ed25519": "<base64>", "mldsa65": "<base64>"}, ...]

A bundle never brings its own keys: what does not verify against this file is refused.
"""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from fedward.common.errors import TrustRefused
from fedward.common.files import canonical_json, config_folder, read_bounded, write_atomically

TRUST_FILE = "trust.json"
_LIMIT_BYTES = 1 << 20
_ED25519_BYTES = 32  # RFC 8032
_MLDSA65_BYTES = 1952  # FIPS 204, table 2


@dataclass(frozen=True)
class TrustedKey:
    """The public half of a signer: both keys, of which neither counts alone.

    Attributes:
        name: for people; it proves nothing.
        ed25519: 32 raw bytes (RFC 8032).
        mldsa65: 1952 raw bytes (FIPS 204).
    """

    name: str
    ed25519: bytes
    mldsa65: bytes

    def __post_init__(self) -> None:
        """Refuse keys of another length."""
        if len(self.ed25519) != _ED25519_BYTES or len(self.mldsa65) != _MLDSA65_BYTES:
            raise TrustRefused(
                f"The key {self.name!r} does not have the length of an Ed25519 and ML-DSA-65 key."
            )

    @property
    def keyid(self) -> str:
        """SHA-256, in hex, of the two raw public keys one after the other."""
        return hashlib.sha256(self.ed25519 + self.mldsa65).hexdigest()

    def signed(self, message: bytes, ed25519: bytes, mldsa65: bytes) -> bool:
        """Whether both signatures of `message` are this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.ed25519).verify(ed25519, message)
            MLDSA65PublicKey.from_public_bytes(self.mldsa65).verify(mldsa65, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def entry(self) -> dict[str, str]:
        """The key as it stands in a trust file."""
        return {
            "name": self.name,
            "keyid": self.keyid,
            "ed25519": base64.b64encode(self.ed25519).decode(),
            "mldsa65": base64.b64encode(self.mldsa65).decode(),
        }


def load_trust(path: Path | None = None) -> tuple[TrustedKey, ...]:
    """The keys of a trust file; None means the user's own, `config_folder()/trust.json`.

    Raises:
        TrustRefused: missing, unreadable, empty, malformed, or a key whose keyid is not its own.
    """
    path = config_folder() / TRUST_FILE if path is None else path
    if not os.path.exists(path):
        raise TrustRefused(
            f"There is no trust file {path}: name the study's with --trust FILE, "
            "or run `fedward simulate` once to make keys of your own."
        )
    try:
        entries = json.loads(read_bounded(path, _LIMIT_BYTES, refusal=TrustRefused))
    except (ValueError, RecursionError) as error:
        raise TrustRefused(f"The trust file {path} is not JSON; fetch it again from the study.") from error
    if not isinstance(entries, list) or not entries:
        raise TrustRefused(f"The trust file {path} must be a JSON list of at least one key.")
    return tuple(key_of(entry, path) for entry in entries)


def write_trust(path: Path, keys: Sequence[TrustedKey]) -> None:
    """Write a trust file, to be handed to those who are to verify.

    Raises:
        OutputRefused: the file cannot be written.
    """
    write_atomically(path, canonical_json([key.entry() for key in keys]) + b"\n")


def key_of(entry: object, path: Path | str) -> TrustedKey:
    """The key that `TrustedKey.entry` spelled; `path` is where it stood, for the sentence.

    Raises:
        TrustRefused: malformed, or its keyid is not its own.
    """
    if not isinstance(entry, dict) or set(entry) != {"name", "keyid", "ed25519", "mldsa65"}:
        raise TrustRefused(f"A key in {path} must have exactly name, keyid, ed25519 and mldsa65.")
    if not isinstance(entry["name"], str):
        raise TrustRefused(f"A key in {path} has a name that is not text.")
    try:
        key = TrustedKey(entry["name"], decode_base64(entry["ed25519"]), decode_base64(entry["mldsa65"]))
    except ValueError as error:
        raise TrustRefused(f"The key {entry['name']!r} in {path} is damaged: {error}.") from error
    if key.keyid != entry["keyid"]:
        raise TrustRefused(f"The key {key.name!r} in {path} does not match its keyid; fetch the file again.")
    return key


def decode_base64(text: object) -> bytes:
    """The bytes that `text` spells in the one standard way (RFC 4648, padded).

    Raises:
        ValueError: not text, not base64, or another spelling of the same bytes.
    """
    if not isinstance(text, str):
        raise ValueError("base64 must be text")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("it is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise ValueError("it is not the standard spelling of base64")
    return data
