"""A sealing key's two halves as files: the private one for its owner alone, the public one signed by it.

    {"key": {"schema": "fedward.sealing-key/1", "owner": NAME, "x25519": B64, "mlkem768": B64,
             "expires": UNIX},
     "keyid": SIGNER, "signatures": [B64 Ed25519, B64 ML-DSA-65]}

A sealing key has no forward secrecy of its own: who gets the private half later can read all that was ever
sealed to it. So it is made for one study and removed with it.
"""

import base64
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedward.common.errors import TrustRefused
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.private_files import alone_in, read_private, write_private_once
from fedward.common.sealing import MLKEM768_SEED_BYTES, X25519_SEED_BYTES, PublicSealingKey, SealingKey
from fedward.common.signing import Signer, pre_authentication
from fedward.common.trust import TrustedKey, decode_base64

SEALING_KEY_FILE = "sealing-key.json"
ANNOUNCEMENT_TYPE = "application/vnd.fedward.sealing-key+json"
MOST_ANNOUNCEMENT_BYTES = 16384
_SCHEMA = "fedward.sealing-key/1"
_KEY_LIMIT_BYTES = 4096


def create_sealing_key(folder: Path) -> SealingKey:
    """Make a sealing key in `folder` (made with mode 0700), in one file of mode 0600.

    Raises:
        TrustRefused: there is one already; keys are never overwritten.
        OutputRefused: the folder or file cannot be written.
    """
    seeds = secrets.token_bytes(X25519_SEED_BYTES), secrets.token_bytes(MLKEM768_SEED_BYTES)
    document = {"schema": _SCHEMA, "x25519": _spelled(seeds[0]), "mlkem768": _spelled(seeds[1])}
    with alone_in(folder):
        write_private_once(folder / SEALING_KEY_FILE, canonical_json(document))
    return SealingKey(*seeds)


def load_sealing_key(folder: Path) -> SealingKey:
    """The key that `create_sealing_key` made.

    Raises:
        TrustRefused: missing, damaged, or others than its owner may read or change it.
    """
    path = folder / SEALING_KEY_FILE
    data = read_private(path, _KEY_LIMIT_BYTES)
    try:
        document = parse_canonical(data)
        _require_fields(document, "schema", "x25519", "mlkem768")
        return SealingKey(decode_base64(document["x25519"]), decode_base64(document["mlkem768"]))
    except ValueError as error:
        raise TrustRefused(f"{path} is damaged; restore it from its backup or make a new key.") from error


def announce(key: PublicSealingKey, owner: Signer, expires: int) -> bytes:
    """The public half as its owner hands it out: signed by `owner`, good until `expires` (unix seconds)."""
    body = {
        "schema": _SCHEMA,
        "owner": owner.name,
        "x25519": _spelled(key.x25519),
        "mlkem768": _spelled(key.mlkem768),
        "expires": expires,
    }
    signatures = owner.sign_as(ANNOUNCEMENT_TYPE, canonical_json(body))
    return canonical_json(
        {"key": body, "keyid": owner.public().keyid, "signatures": [_spelled(one) for one in signatures]}
    )


def read_announcement(data: bytes, owner: str, trust: Sequence[TrustedKey], now: float) -> PublicSealingKey:
    """The sealing key of `owner`, if a trusted key of that name signed it and it has not expired.

    Raises:
        TrustRefused: malformed, signed by another, changed in any byte, or expired.
    """
    try:
        body, keyid, signatures = _parts(data)
        key = PublicSealingKey(decode_base64(body["x25519"]), decode_base64(body["mlkem768"]))
    except ValueError as error:
        raise TrustRefused(f"A sealing key's announcement is malformed: {error}; fetch it again.") from error
    message = pre_authentication(ANNOUNCEMENT_TYPE, canonical_json(body))
    owners = [known for known in trust if known.keyid == keyid and known.name == owner == body["owner"]]
    if not owners or not owners[0].signed(message, *signatures):
        raise TrustRefused(
            f"A sealing key for {owner!r} is not signed by a trusted key of that name: fetch it again, or "
            "the new trust file if the owner changed keys."
        )
    if now >= body["expires"]:
        raise TrustRefused(f"The sealing key of {owner!r} has expired: fetch its new one.")
    return key


def _parts(data: bytes) -> tuple[dict[str, Any], str, tuple[bytes, bytes]]:
    if len(data) > MOST_ANNOUNCEMENT_BYTES:
        raise ValueError(f"it is over {MOST_ANNOUNCEMENT_BYTES} bytes")
    document = parse_canonical(data)
    _require_fields(document, "key", "keyid", "signatures")
    body, signatures = document["key"], document["signatures"]
    _require_fields(body, "schema", "owner", "x25519", "mlkem768", "expires")
    if type(body["expires"]) is not int or not isinstance(document["keyid"], str):
        raise ValueError("its expiry or key id is of a wrong type")
    if not isinstance(signatures, list) or len(signatures) != 2:
        raise ValueError("there must be two signatures")
    return body, document["keyid"], (decode_base64(signatures[0]), decode_base64(signatures[1]))


def _require_fields(document: object, *fields: str) -> None:
    if not isinstance(document, dict) or set(document) != set(fields):
        raise ValueError("its fields differ")
    if document.get("schema", _SCHEMA) != _SCHEMA:
        raise ValueError("it is of another version")


def _spelled(data: bytes) -> str:
    return base64.b64encode(data).decode()
