"""SuperLink knows the nodes of the sites that count now, and no others."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedward.client import enrolment as hospital_side
from fedward.client.membership import Membership, node_public_pem
from fedward.common.errors import EngineFailed
from fedward.common.instants import utc_now
from fedward.server import registrar as module
from fedward.server.coordinator import Coordinator
from fedward.server.enrolment import answer, review, revoke
from fedward.server.registrar import Registrar


class FakeSuperLink:
    """Registered nodes by key; nothing, while it is down."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}
        self.refused: set[bytes] = set()
        self.is_down = False
        self.calls = 0

    def nodes(self) -> dict[bytes, int]:
        self.calls += 1
        if self.is_down:
            raise EngineFailed("It is down.")
        return dict(self.known)

    def register(self, key: bytes) -> None:
        if key in self.refused:
            raise EngineFailed("Public key already in use.")
        assert key not in self.known
        self.known[key] = 100 + len(self.known)

    def unregister(self, node_id: int) -> None:
        self.known = {key: known for key, known in self.known.items() if known != node_id}


@pytest.fixture
def superlink() -> FakeSuperLink:
    return FakeSuperLink()


@pytest.fixture
def coordinator(tmp_path: Path, make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(tmp_path / "c")


@pytest.fixture
def registrar(
    coordinator: Coordinator, superlink: FakeSuperLink, monkeypatch: pytest.MonkeyPatch
) -> Registrar:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.0)
    return Registrar(coordinator.folder, superlink)  # type: ignore[arg-type]


def _key(member: Any) -> bytes:
    return node_public_pem(Membership.load(member.state).node_key)


def test_a_site_is_registered_once_it_is_enrolled_and_taken_off_once_it_is_revoked(
    registrar: Registrar,
    superlink: FakeSuperLink,
    coordinator: Coordinator,
    join_federation: Callable[..., Any],
    tmp_path: Path,
) -> None:
    registrar.tick()
    assert superlink.known == {}
    members = [join_federation(coordinator, tmp_path / name, name) for name in ("a", "b")]
    for _ in range(2):
        registrar.tick()
    assert set(superlink.known) == set(map(_key, members))
    revoke(coordinator, "a", utc_now(), "tests")
    registrar.tick()
    assert set(superlink.known) == {_key(members[1])}


def test_a_renewed_node_has_both_keys_until_the_old_one_ends(
    registrar: Registrar,
    superlink: FakeSuperLink,
    coordinator: Coordinator,
    join_federation: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member, now = join_federation(coordinator, tmp_path / "a", "a"), utc_now()
    old = _key(member)
    _, file = hospital_side.renew(member.state, now + timedelta(seconds=1), new_keys=True)
    seen = review(coordinator, file, now + timedelta(seconds=1))
    hospital_side.accept(member.state, answer(coordinator, seen, None, now, "tests"), None, now)
    registrar.tick()
    assert set(superlink.known) == {old, _key(member)}
    monkeypatch.setattr(module, "utc_now", lambda: now + timedelta(days=8))
    registrar.tick()
    assert set(superlink.known) == {_key(member)}


def test_a_key_that_superlink_does_not_take_keeps_no_other_out(
    registrar: Registrar,
    superlink: FakeSuperLink,
    coordinator: Coordinator,
    join_federation: Callable[..., Any],
    tmp_path: Path,
) -> None:
    members = [join_federation(coordinator, tmp_path / name, name) for name in "abcd"]
    superlink.refused.add(_key(members[0]))
    registrar.tick()
    assert set(superlink.known) == set(map(_key, members[1:]))
    superlink.refused.clear()
    registrar.tick()
    assert len(superlink.known) == 4


def test_a_superlink_that_is_down_is_asked_again_and_one_that_agrees_is_left_alone(
    registrar: Registrar,
    superlink: FakeSuperLink,
    coordinator: Coordinator,
    join_federation: Callable[..., Any],
    tmp_path: Path,
) -> None:
    superlink.is_down = True
    member = join_federation(coordinator, tmp_path / "a", "a")
    registrar.tick()
    superlink.is_down = False
    registrar.tick()
    assert set(superlink.known) == {_key(member)}
    calls = superlink.calls
    registrar.tick()
    assert superlink.calls == calls
