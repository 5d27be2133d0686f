"""Signing and verifying releases: a DSSE v1 envelope around an in-toto Statement v1, signed twice.

    {"payload": base64(statement), "payloadType": "application/vnd.in-toto+json",
     "signatures": [{"keyid": K, "sig": base64(Ed25519)}, {"keyid": K, "sig": base64(ML-DSA-65)}]}

Both signatures of one and the same trusted key are required, so a release stays safe if either scheme
falls. The envelope and the statement are canonical JSON, and anything else is refused: so a change of
any byte is refused, also of a byte that no signature covers.

References: DSSE v1.0.2 (https://github.com/secure-systems-lab/dsse), in-toto Statement v1, RFC 8032,
FIPS 204.
"""

import base64
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from fedward.common.errors import SignatureRefused, TrustRefused
from fedward.common.files import canonical_json, config_folder, parse_canonical
from fedward.common.private_files import alone_in, read_private, write_private_once
from fedward.common.trust import TRUST_FILE, TrustedKey, decode_base64, load_trust, write_trust

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
KEY_FILE = "signing-key.json"
_KEY_SCHEMA = "fedward.signing-key/1"
_KEY_LIMIT_BYTES = 4096
_SEED_BYTES = 32


class Signer:
    """A private key pair. It is made from two seeds of 32 bytes, which is all that is stored."""

    def __init__(self, name: str, ed25519_seed: bytes, mldsa65_seed: bytes) -> None:
        """Derive both keys from their seeds (32 bytes each)."""
        self.name = name
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(ed25519_seed)
        self._mldsa65 = MLDSA65PrivateKey.from_seed_bytes(mldsa65_seed)

    @classmethod
    def load(cls, folder: Path) -> "Signer":
        """Read the keys that `create_keys` wrote.

        Raises:
            TrustRefused: missing, damaged, or readable by others than their owner.
        """
        path = folder / KEY_FILE
        data = read_private(path, _KEY_LIMIT_BYTES)
        try:
            return _signer_of(parse_canonical(data))
        except ValueError as error:
            raise TrustRefused(f"{path} is damaged; restore it from its backup or make new keys.") from error

    def public(self) -> TrustedKey:
        """The public half, to be put into trust files."""
        return TrustedKey(
            self.name,
            self._ed25519.public_key().public_bytes_raw(),
            self._mldsa65.public_key().public_bytes_raw(),
        )

    def sign_as(self, payload_type: str, payload: bytes) -> tuple[bytes, bytes]:
        """(Ed25519, ML-DSA-65) signatures of `payload`, good for this type of payload only.

        ML-DSA-65 signs with fresh randomness (FIPS 204, hedged), so no two signatures are the same bytes.
        """
        message = pre_authentication(payload_type, payload)
        return self._ed25519.sign(message), self._mldsa65.sign(message)

    def sign(self, statement: dict[str, Any]) -> bytes:
        """The signed envelope of an in-toto statement, as canonical JSON."""
        payload = canonical_json(statement)
        keyid = self.public().keyid
        signatures = self.sign_as(PAYLOAD_TYPE, payload)
        return canonical_json(
            {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"keyid": keyid, "sig": base64.b64encode(s).decode()} for s in signatures],
            }
        )


def verify(envelope: bytes, trust: Sequence[TrustedKey]) -> dict[str, Any]:
    """The statement in `envelope`, if one trusted key signed it with both schemes.

    Raises:
        SignatureRefused: malformed, spelled in another way, signed by nobody in `trust`, or by a key of
            which one signature does not verify.
    """
    try:
        payload, keyid, ed25519, mldsa65 = _unpack(parse_canonical(envelope))
    except ValueError as error:
        raise SignatureRefused(f"The signatures are malformed: {error}; fetch the release again.") from error
    signers = [key for key in trust if key.keyid == keyid]
    if not signers:
        raise SignatureRefused(
            f"The release is signed by key {keyid[:16]}, which the trust file does not hold; "
            "if the study did change its keys, fetch its new trust file."
        )
    if not signers[0].signed(pre_authentication(PAYLOAD_TYPE, payload), ed25519, mldsa65):
        raise SignatureRefused("A signature does not verify: the release was changed; fetch it again.")
    return _statement_of(payload)


def create_keys(folder: Path, name: str = "fedward") -> Signer:
    """Make a new key pair in `folder` (made with mode 0700), in one file of mode 0600.

    Raises:
        TrustRefused: there are keys already; they are never overwritten.
        OutputRefused: the folder or file cannot be written.
    """
    seeds = (secrets.token_bytes(_SEED_BYTES), secrets.token_bytes(_SEED_BYTES))
    with alone_in(folder):
        write_private_once(folder / KEY_FILE, _key_document(name, *seeds))
    return Signer(name, *seeds)


def ensure_default_keys() -> Signer:
    """This user's own keys, made and written into the user's trust file at first use.

    Raises:
        TrustRefused: the keys are damaged, or a trust file exists that does not hold them (it is left as
            it is).
        OutputRefused: the configuration folder cannot be written.
    """
    home = config_folder()
    with alone_in(home):
        keys = home / "keys"
        signer = Signer.load(keys) if os.path.lexists(keys / KEY_FILE) else create_keys(keys)
        if not os.path.lexists(home / TRUST_FILE):
            write_trust(home / TRUST_FILE, [signer.public()])
    if signer.public().keyid not in {key.keyid for key in load_trust(home / TRUST_FILE)}:
        raise TrustRefused(
            f"{home / TRUST_FILE} does not hold this user's own signing key: add the key's entry to it, "
            "or move the file away and one that fits is made."
        )
    return signer


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: what is signed is the type and the payload, each with its length.

    So a signature under one type never passes for one under another: a message for a release.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _unpack(envelope: Any) -> tuple[bytes, str, bytes, bytes]:
    _require(_has_exactly(envelope, "payload", "payloadType", "signatures"), "an envelope has three fields")
    _require(envelope["payloadType"] == PAYLOAD_TYPE, f"the payload type must be {PAYLOAD_TYPE}")
    signatures = envelope["signatures"]
    _require(isinstance(signatures, list) and len(signatures) == 2, "there must be two signatures")
    _require(all(_has_exactly(s, "keyid", "sig") for s in signatures), "a signature has a keyid and a sig")
    first, second = signatures
    keyid = first["keyid"]
    _require(isinstance(keyid, str) and keyid == second["keyid"], "both signatures must be of one key")
    return (
        decode_base64(envelope["payload"]),
        keyid,
        decode_base64(first["sig"]),
        decode_base64(second["sig"]),
    )


def _statement_of(payload: bytes) -> dict[str, Any]:
    try:
        statement = parse_canonical(payload)
        _require(_has_exactly(statement, "_type", "subject", "predicateType", "predicate"), "fields differ")
        _require(statement["_type"] == STATEMENT_TYPE, "another type")
    except ValueError as error:
        raise SignatureRefused(f"What was signed is not an in-toto Statement v1: {error}.") from error
    return dict(statement)


def _key_document(name: str, ed25519_seed: bytes, mldsa65_seed: bytes) -> bytes:
    return canonical_json(
        {
            "schema": _KEY_SCHEMA,
            "name": name,
            "ed25519": base64.b64encode(ed25519_seed).decode(),
            "mldsa65": base64.b64encode(mldsa65_seed).decode(),
        }
    )


def _signer_of(document: Any) -> Signer:
    _require(_has_exactly(document, "schema", "name", "ed25519", "mldsa65"), "fields differ")
    _require(document["schema"] == _KEY_SCHEMA and isinstance(document["name"], str), "unknown schema")
    return Signer(document["name"], decode_base64(document["ed25519"]), decode_base64(document["mldsa65"]))


def _has_exactly(value: object, *fields: str) -> bool:
    return isinstance(value, dict) and set(value) == set(fields)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
