"""The site's one key has one reader, and gives each purpose bytes of its own."""

import hmac
from pathlib import Path

import pytest

import fedward.client
from fedward.client.anchors import Anchors
from fedward.client.identity import DataIdentity
from fedward.client.registry import Registry
from fedward.common.chain import Head

KEY = bytes(range(32))


def test_a_subkey_is_fixed_by_key_and_purpose_and_by_nothing_else() -> None:
    identity = DataIdentity(KEY)
    assert identity.subkey(b"fedward ledger anchor mac") == hmac.digest(
        KEY, b"fedward ledger anchor mac", "sha256"
    )
    assert len({identity.subkey(b"a"), identity.subkey(b"b"), DataIdentity(KEY[::-1]).subkey(b"a")}) == 3


@pytest.mark.parametrize("purpose", [b"", b"x" * 64])
def test_no_purpose_is_as_long_as_an_image(purpose: bytes) -> None:
    """Else a digest in the list of images would be half of a subkey."""
    with pytest.raises(ValueError, match="1 to 63 bytes"):
        DataIdentity(KEY).subkey(purpose)


def test_tokens_of_earlier_versions_are_still_read(tmp_path: Path) -> None:
    (tmp_path / "image.key").write_bytes(KEY)
    anchors = Anchors(Registry(tmp_path))
    head = Head(7, "ab" * 32)
    pad = hmac.digest(hmac.digest(KEY, b"fedward ledger anchor pad", "sha256"), head.hash.encode(), "sha256")
    place = bytes.fromhex("cd" * 16) + (7).to_bytes(8, "big")
    body = f"{bytes(a ^ b for a, b in zip(place, pad[:24], strict=True)).hex()}:{head.hash}"
    mac = hmac.digest(hmac.digest(KEY, b"fedward ledger anchor mac", "sha256"), body.encode(), "sha256")
    assert anchors.opened(f"{body}:{mac.hex()}") == ("cd" * 16, head)
    assert anchors.token("cd" * 16, head) == f"{body}:{mac.hex()}"


def test_the_key_file_is_named_and_read_in_one_place() -> None:
    sources = {path.stem: path.read_text() for path in Path(fedward.client.__path__[0]).glob("*.py")}
    assert [name for name, text in sources.items() if '"image.key"' in text] == ["registry"]
    assert sorted(name for name, text in sources.items() if "KEY_BYTES, refusal" in text) == ["identity"]
