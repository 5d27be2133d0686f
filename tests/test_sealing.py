"""What is sealed opens for one key and under one header, and every byte of it counts."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.errors import EnvelopeRefused, TrustRefused
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.sealing import SEAL_BYTES, PublicSealingKey, SealingKey
from fedward.common.sealing_keys import (
    MOST_ANNOUNCEMENT_BYTES,
    SEALING_KEY_FILE,
    announce,
    create_sealing_key,
    load_sealing_key,
    read_announcement,
)
from fedward.common.signing import Signer

KEY = SealingKey(b"\x01" * 32, b"\x02" * 64)
HALF_X25519 = SealingKey(b"\x01" * 32, b"\x03" * 64)
HALF_MLKEM = SealingKey(b"\x03" * 32, b"\x02" * 64)
NOW = 1_800_000_000


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=50))
def test_what_was_sealed_comes_back(plaintext: bytes, header: bytes) -> None:
    sealed = KEY.public().seal(plaintext, header)
    assert KEY.unseal(sealed, header) == plaintext
    assert len(sealed) == len(plaintext) + SEAL_BYTES


def test_every_changed_byte_and_every_cut_is_refused() -> None:
    sealed = KEY.public().seal(b"plain", b"header")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1 << place % 7  # the top bit of an X25519 key is not part of it (RFC 7748)
        for wrong in (bytes(changed), sealed[:place]):
            with pytest.raises(EnvelopeRefused):
                KEY.unseal(wrong, b"header")
    with pytest.raises(EnvelopeRefused):
        KEY.unseal(sealed + b"x", b"header")


def test_the_ephemeral_keys_ignored_bit_counts_too() -> None:
    sealed = bytearray(KEY.public().seal(b"plain", b"header"))
    sealed[31] ^= 0x80
    with pytest.raises(EnvelopeRefused):
        KEY.unseal(bytes(sealed), b"header")


@pytest.mark.parametrize("other", [HALF_X25519, HALF_MLKEM])
def test_one_half_of_the_key_opens_nothing(other: SealingKey) -> None:
    with pytest.raises(EnvelopeRefused):
        other.unseal(KEY.public().seal(b"plain", b"header"), b"header")


def test_another_header_opens_nothing() -> None:
    with pytest.raises(EnvelopeRefused):
        KEY.unseal(KEY.public().seal(b"plain", b"header"), b"headers")


def test_the_same_plaintext_is_never_sealed_to_the_same_bytes() -> None:
    sealed = {KEY.public().seal(b"plain", b"header") for _ in range(5)}
    assert len(sealed) == 5
    assert len({one[:32] for one in sealed}) == len({one[32:1120] for one in sealed}) == 5


def test_the_construction_is_the_documented_one() -> None:
    """By hand from the primitives: both secrets, ML-KEM's first, and the whole transcript."""
    sealed = KEY.public().seal(b"plain", b"header")
    public, ciphertext, body = sealed[:32], sealed[32:1120], sealed[1120:]
    x25519 = X25519PrivateKey.from_private_bytes(b"\x01" * 32)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(b"\x02" * 64)
    peer = X25519PublicKey.from_public_bytes(public)
    secrets = mlkem.decapsulate(ciphertext) + x25519.exchange(peer)
    digest = Hash(SHA256())
    digest.update(b"header")
    info = b"fedward.sealing/1" + digest.finalize() + public + ciphertext
    info += x25519.public_key().public_bytes_raw() + mlkem.public_key().public_bytes_raw()
    drawn = HKDF(SHA256(), 44, salt=None, info=info).derive(secrets)
    assert AESGCM(drawn[:32]).decrypt(drawn[32:], body, b"header") == b"plain"


def test_a_public_key_that_is_none_is_refused() -> None:
    public = KEY.public()
    for x25519, mlkem768 in (
        (b"", public.mlkem768),
        (public.x25519, b""),
        (public.x25519, b"\xff" * 1184),  # no encapsulation key: FIPS 203, section 7.2
    ):
        with pytest.raises(TrustRefused, match="no pair"):
            PublicSealingKey(x25519, mlkem768)


def test_a_key_of_small_order_is_refused() -> None:
    with pytest.raises(EnvelopeRefused, match="of no use"):
        PublicSealingKey(bytes(32), KEY.public().mlkem768).seal(b"plain", b"")
    with pytest.raises(EnvelopeRefused):
        KEY.unseal(bytes(32) + KEY.public().seal(b"plain", b"")[32:], b"")


# Files and announcements


def test_keys_are_stored_for_their_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    key = create_sealing_key(tmp_path / "keys")
    path = tmp_path / "keys" / SEALING_KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert load_sealing_key(path.parent).public() == key.public()
    with pytest.raises(TrustRefused, match="exists already"):
        create_sealing_key(path.parent)
    assert load_sealing_key(path.parent).public().keyid == key.public().keyid


def test_damaged_open_or_missing_keys_are_refused(tmp_path: Path) -> None:
    create_sealing_key(tmp_path)
    path = tmp_path / SEALING_KEY_FILE
    whole = path.read_bytes()
    document = parse_canonical(whole)
    short = canonical_json({**document, "x25519": document["mlkem768"]})
    other = canonical_json({**document, "schema": "x"})
    for data in (b"", whole[:-1], whole + b" ", short, other, canonical_json([1]), bytes(5000)):
        path.write_bytes(data)
        with pytest.raises(TrustRefused):
            load_sealing_key(tmp_path)
    path.write_bytes(whole)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(TrustRefused, match="chmod 600"):
            load_sealing_key(tmp_path)
    path.unlink()
    with pytest.raises(TrustRefused):
        load_sealing_key(tmp_path)


def test_an_announced_key_comes_back(signer: Signer) -> None:
    data = announce(KEY.public(), signer, NOW + 10)
    assert read_announcement(data, "tests", [signer.public()], NOW) == KEY.public()


def test_every_changed_byte_of_an_announcement_is_refused(signer: Signer) -> None:
    data = announce(KEY.public(), signer, NOW + 10)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(TrustRefused):
            read_announcement(bytes(changed), "tests", [signer.public()], NOW)


def test_an_announcement_of_another_expired_or_cut_is_refused(signer: Signer, stranger: Signer) -> None:
    data = announce(KEY.public(), signer, NOW + 10)
    both = [signer.public(), stranger.public()]
    with pytest.raises(TrustRefused, match="expired"):
        read_announcement(data, "tests", both, NOW + 10)
    with pytest.raises(TrustRefused, match="not signed"):
        read_announcement(data, "tests", [stranger.public()], NOW)
    with pytest.raises(TrustRefused, match="not signed"):
        read_announcement(data, "stranger", both, NOW)
    posing = Signer("tests", b"\x03" * 32, b"\x04" * 32)  # the stranger's key under another's name
    with pytest.raises(TrustRefused, match="not signed"):
        read_announcement(announce(KEY.public(), posing, NOW + 10), "tests", both, NOW)
    for wrong in (b"", data[:-1], data + b" ", b"[]", bytes(MOST_ANNOUNCEMENT_BYTES + 1)):
        with pytest.raises(TrustRefused, match="malformed"):
            read_announcement(wrong, "tests", both, NOW)


def test_a_well_signed_announcement_of_another_form_is_refused(signer: Signer) -> None:
    document = parse_canonical(announce(KEY.public(), signer, NOW))
    for change in ({"signatures": []}, {"keyid": 3}, {"key": {**document["key"], "expires": True}}, {"x": 1}):
        with pytest.raises(TrustRefused, match="malformed"):
            read_announcement(canonical_json({**document, **change}), "tests", [signer.public()], 0)
