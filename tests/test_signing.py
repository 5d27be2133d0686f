"""Both signatures of one trusted key are required, and a change of any byte is refused."""

import base64
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from fedward.common.errors import SignatureRefused, TrustRefused
from fedward.common.files import canonical_json
from fedward.common.signing import STATEMENT_TYPE, Signer, create_keys, ensure_default_keys, verify
from fedward.common.trust import load_trust, write_trust

STATEMENT = {
    "_type": STATEMENT_TYPE,
    "subject": [{"name": "a", "digest": {"sha256": "0" * 64}}],
    "predicateType": "urn:test",
    "predicate": {},
}


@pytest.fixture
def envelope(signer: Signer) -> bytes:
    return signer.sign(STATEMENT)


def _respelled(envelope: bytes, change: Any) -> bytes:
    document = json.loads(envelope)
    change(document)
    return canonical_json(document)


def test_what_was_signed_comes_back(signer: Signer, envelope: bytes) -> None:
    assert verify(envelope, [signer.public()]) == STATEMENT


def test_the_envelope_is_dsse(signer: Signer, envelope: bytes) -> None:
    document = json.loads(envelope)
    payload = base64.b64decode(document["payload"])
    kind = document["payloadType"]
    message = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    first, second = (base64.b64decode(s["sig"]) for s in document["signatures"])
    key = signer.public()
    Ed25519PublicKey.from_public_bytes(key.ed25519).verify(first, message)
    MLDSA65PublicKey.from_public_bytes(key.mldsa65).verify(second, message)
    assert document["signatures"][0]["keyid"] == hashlib.sha256(key.ed25519 + key.mldsa65).hexdigest()


def test_every_changed_byte_is_refused(signer: Signer, envelope: bytes) -> None:
    trust = [signer.public()]
    for place in range(len(envelope)):
        for flip in (0x01, 0x20):
            changed = bytearray(envelope)
            changed[place] ^= flip
            with pytest.raises(SignatureRefused):
                verify(bytes(changed), trust)


def test_a_cut_or_longer_envelope_is_refused(signer: Signer, envelope: bytes) -> None:
    for other in (
        b"",
        envelope[:-1],
        envelope + b"\n",
        envelope[: len(envelope) // 2],
        b"{}",
        b"[]",
        b"null",
    ):
        with pytest.raises(SignatureRefused):
            verify(other, [signer.public()])


@pytest.mark.parametrize("which", [0, 1])
def test_one_signature_of_two_is_not_enough(
    signer: Signer, stranger: Signer, envelope: bytes, which: int
) -> None:
    other = json.loads(stranger.sign(STATEMENT))["signatures"][which]["sig"]
    mixed = _respelled(envelope, lambda d: d["signatures"][which].update(sig=other))
    with pytest.raises(SignatureRefused, match="does not verify"):
        verify(mixed, [signer.public(), stranger.public()])


def test_the_two_signatures_must_be_of_one_key(signer: Signer, stranger: Signer, envelope: bytes) -> None:
    second = json.loads(stranger.sign(STATEMENT))["signatures"][1]
    mixed = _respelled(envelope, lambda d: d["signatures"].__setitem__(1, second))
    with pytest.raises(SignatureRefused, match="of one key"):
        verify(mixed, [signer.public(), stranger.public()])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(more=1),
        lambda d: d.pop("payloadType"),
        lambda d: d.update(payloadType="text/plain"),
        lambda d: d.update(payload=d["payload"] + "===="),
        lambda d: d.update(payload=7),
        lambda d: d.update(signatures=d["signatures"][:1]),
        lambda d: d.update(signatures=d["signatures"][::-1]),
        lambda d: d.update(signatures=d["signatures"] + d["signatures"][:1]),
        lambda d: d.update(signatures={}),
        lambda d: d["signatures"][0].update(note="x"),
        lambda d: d["signatures"][0].update(sig=""),
        lambda d: d["signatures"][1].update(sig=None),
        lambda d: [s.update(keyid=["x"]) for s in d["signatures"]],
    ],
)
def test_another_envelope_is_refused_by_name(signer: Signer, envelope: bytes, change: Any) -> None:
    with pytest.raises(SignatureRefused):
        verify(_respelled(envelope, change), [signer.public()])


def test_another_key_and_an_empty_trust_are_refused(
    signer: Signer, stranger: Signer, envelope: bytes
) -> None:
    for trust in ([], [stranger.public()]):
        with pytest.raises(SignatureRefused, match="does not hold"):
            verify(envelope, trust)
    assert verify(envelope, [stranger.public(), signer.public()]) == STATEMENT


@pytest.mark.parametrize("statement", [{}, {**STATEMENT, "_type": "x"}, {**STATEMENT, "more": 1}])
def test_a_signed_document_that_is_no_statement_is_refused(signer: Signer, statement: dict[str, Any]) -> None:
    with pytest.raises(SignatureRefused, match="Statement"):
        verify(signer.sign(statement), [signer.public()])


def test_keys_are_stored_for_their_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    (file,) = (tmp_path / "keys").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    with pytest.raises(TrustRefused, match="never overwritten"):
        create_keys(tmp_path / "keys")
    assert file.read_bytes() == before
    assert Signer.load(tmp_path / "keys").public() == made.public()


def test_damaged_open_or_missing_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustRefused, match="does not exist"):
        Signer.load(tmp_path)
    create_keys(tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.chmod(0o640)
    with pytest.raises(TrustRefused, match="chmod 600"):
        Signer.load(tmp_path)
    file.chmod(0o600)
    for damaged in (
        b"",
        whole[:-5],
        whole.replace(b"ed25519", b"ed25518"),
        whole[:-10] + whole[-8:],
        b"x" * 5000,
    ):
        file.write_bytes(damaged)
        with pytest.raises(TrustRefused):
            Signer.load(tmp_path)


def test_a_trust_file_comes_back(tmp_path: Path, signer: Signer, stranger: Signer) -> None:
    keys = (signer.public(), stranger.public())
    write_trust(tmp_path / "t", keys)
    assert load_trust(tmp_path / "t") == keys


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.clear(),
        lambda e: e.__setitem__(0, 7),
        lambda e: e[0].update(more=1),
        lambda e: e[0].update(name=1),
        lambda e: e[0].update(keyid="0" * 64),
        lambda e: e[0].update(ed25519=e[0]["ed25519"][:-4]),
        lambda e: e[0].update(ed25519="!" + e[0]["ed25519"][1:]),
        lambda e: e[0].update(mldsa65=e[0]["ed25519"]),
        lambda e: e[0].update(mldsa65=None),
    ],
)
def test_a_damaged_trust_file_is_refused(tmp_path: Path, signer: Signer, change: Any) -> None:
    entries: list[Any] = [signer.public().entry()]
    change(entries)
    (tmp_path / "t").write_text(json.dumps(entries))
    with pytest.raises(TrustRefused):
        load_trust(tmp_path / "t")


@pytest.mark.parametrize("text", ["", "{", "{}", "null", "[" * 100_000])
def test_a_trust_file_that_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(TrustRefused):
        load_trust(tmp_path / "t")


def test_a_missing_trust_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path))
    with pytest.raises(TrustRefused, match=r"--trust FILE.*fedward simulate"):
        load_trust(None)


def test_the_first_use_makes_keys_and_trust_and_later_ones_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path / "home"))
    first = ensure_default_keys().public()
    assert load_trust() == (first,)
    assert ensure_default_keys().public() == first


def test_a_trust_file_of_others_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stranger: Signer
) -> None:
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path))
    write_trust(tmp_path / "trust.json", [stranger.public()])
    before = (tmp_path / "trust.json").read_bytes()
    with pytest.raises(TrustRefused, match="does not hold this user's own"):
        ensure_default_keys()
    assert (tmp_path / "trust.json").read_bytes() == before


def test_two_first_uses_at_once_agree_on_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path / "home"))
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(ensure_default_keys().public().keyid)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
