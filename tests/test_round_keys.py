"""A round's key: one, the system's, the same after a crash, and never once it was charged and lost."""

import os
from pathlib import Path

import pytest

from fedward.client.round_keys import RoundKeys
from fedward.common.errors import OutputRefused, RequestRefused
from fedward.common.randomness import KEY_BYTES, KeyedGenerator

NAME, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def keys(tmp_path: Path) -> RoundKeys:
    return RoundKeys(tmp_path / "keys")


def _file(tmp_path: Path, name: str = NAME) -> Path:
    return tmp_path / "keys" / f"{name}.key"


def test_a_key_is_the_systems_and_only_the_owners(
    tmp_path: Path, keys: RoundKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    real = os.urandom

    def note(count: int) -> bytes:
        drawn.append(count)
        return real(count)

    monkeypatch.setattr(os, "urandom", note)
    generator = keys.open(NAME, False)
    assert KEY_BYTES in drawn
    assert _file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert generator.key_digest == KeyedGenerator(_file(tmp_path).read_bytes()).key_digest


def test_a_round_has_one_key_through_every_restart_and_no_other_round_has_it(tmp_path: Path) -> None:
    def digest(name: str, charged: bool) -> str:
        return RoundKeys(tmp_path / "keys").open(name, charged).key_digest

    first = digest(NAME, False)
    assert [digest(NAME, charged) for charged in (False, True, True)] == [first] * 3
    assert digest(OTHER, False) != first


def test_a_destroyed_key_is_gone_and_the_next_one_is_another(tmp_path: Path, keys: RoundKeys) -> None:
    first = keys.open(NAME, False).key_digest
    keys.destroy(NAME)
    keys.destroy(NAME)
    assert list((tmp_path / "keys").iterdir()) == []
    assert not keys.holds(NAME)
    assert keys.open(NAME, False).key_digest != first


def test_destroying_overwrites_before_it_removes(
    tmp_path: Path, keys: RoundKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.open(NAME, False)
    seen: list[bytes] = []
    real = Path.unlink

    def look(path: Path, missing_ok: bool = False) -> None:
        seen.append(path.read_bytes())
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", look)
    keys.destroy(NAME)
    assert seen == [bytes(KEY_BYTES)]


def test_a_charged_round_without_its_key_is_refused(keys: RoundKeys) -> None:
    with pytest.raises(RequestRefused, match="key is gone"):
        keys.open(NAME, True)


@pytest.mark.parametrize("left", [bytes(KEY_BYTES), b"", b"short", bytes(range(33))])
def test_what_a_crash_or_a_hand_left_of_a_key_is_no_key(tmp_path: Path, keys: RoundKeys, left: bytes) -> None:
    """A crash between overwriting and removing leaves noughts, whose noise anybody could subtract."""
    _file(tmp_path).write_bytes(left)
    with pytest.raises(RequestRefused, match="key is gone"):
        keys.open(NAME, True)
    fresh = keys.open(NAME, False)
    assert fresh.key_digest != KeyedGenerator(bytes(KEY_BYTES)).key_digest
    assert len(_file(tmp_path).read_bytes()) == KEY_BYTES


def test_a_refusal_names_no_file(tmp_path: Path, keys: RoundKeys) -> None:
    """It leaves the hospital."""
    with pytest.raises(RequestRefused) as caught:
        keys.open(NAME, True)
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputRefused):
        RoundKeys(tmp_path / "file" / "keys")
