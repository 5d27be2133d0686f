"""doctor names what stands between a site and its coordinator, and the cure."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedward.client import checkup_federation as module
from fedward.client.checkup import findings
from fedward.client.checkup_federation import apart, judged
from fedward.common.errors import GatewayFailed
from fedward.common.flower_tools import free_port
from fedward.common.instants import utc_now
from fedward.server.coordinator import Coordinator
from fedward.server.enrolment import revoke
from fedward.server.gateway import CoordinatorGateway


@pytest.fixture(scope="module")
def coordinator(
    tmp_path_factory: pytest.TempPathFactory, make_coordinator: Callable[..., Coordinator]
) -> Coordinator:
    return make_coordinator(tmp_path_factory.mktemp("c"), port=free_port(), superlink_port=free_port())


@pytest.fixture(scope="module")
def gateway(coordinator: Coordinator) -> Iterator[CoordinatorGateway]:
    gateway = CoordinatorGateway(coordinator)
    gateway.start(utc_now())
    yield gateway
    gateway.stop()


@pytest.fixture
def member(coordinator: Coordinator, tmp_path: Path, join_federation: Callable[..., Any]) -> Any:
    return join_federation(coordinator, tmp_path / "state", tmp_path.name)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (timedelta(0), None),
        (timedelta(days=334), None),
        (timedelta(days=336), "expires at"),
        (timedelta(days=365), "expired at"),
        (timedelta(days=-1), "valid from"),
    ],
)
def test_a_certificate_is_renewed_a_month_before_it_ends(
    member: Any, after: timedelta, words: str | None
) -> None:
    found = judged(member.place, utc_now() + after)
    assert (found is None) if words is None else (found is not None and words in found[0])
    if words and "expire" in words:
        assert found is not None
        assert "fedward hospital renew" in found[1]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, None),
        (5, None),
        (6, "6 s ahead of"),
        (-300, None),
        (-600, "600 s behind"),
        (600, "600 s ahead of"),
    ],
)
def test_a_clock_that_flower_would_refuse_is_named(seconds: int, words: str | None) -> None:
    found = apart(timedelta(seconds=seconds))
    assert (found is None) if words is None else (found is not None and words in found[0])


def test_a_site_that_is_let_in_finds_nothing_wrong(member: Any, gateway: CoordinatorGateway) -> None:
    gateway.refresh(utc_now())
    assert (module.coordinator(member.state), module.clock(member.state)) == (None, None)


def test_a_clock_ten_minutes_ahead_is_seen_by_the_coordinators_time(
    member: Any, gateway: CoordinatorGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = utc_now() + timedelta(minutes=10)
    gateway.refresh(utc_now())
    monkeypatch.setattr(module, "utc_now", lambda: later)
    found = module.clock(member.state)
    assert found is not None
    assert "ahead of the coordinator" in found[0]


def test_a_site_that_was_revoked_is_told_so(
    member: Any, gateway: CoordinatorGateway, coordinator: Coordinator
) -> None:
    revoke(coordinator, member.place.site, utc_now(), "tests")
    gateway.refresh(utc_now())
    found = module.coordinator(member.state)
    assert found is not None
    assert "does not let this site in" in found[0]


def test_a_stranger_at_the_coordinators_address_is_named(
    tmp_path: Path,
    make_coordinator: Callable[..., Coordinator],
    join_federation: Callable[..., Any],
    coordinator: Coordinator,
    gateway: CoordinatorGateway,
) -> None:
    other = make_coordinator(tmp_path / "c", port=coordinator.address.port)
    found = module.coordinator(join_federation(other, tmp_path / "state", "a").state)
    assert found is not None
    assert "does not prove to be the coordinator" in found[0]


def test_a_port_where_nobody_answers_is_named(
    tmp_path: Path, make_coordinator: Callable[..., Coordinator], join_federation: Callable[..., Any]
) -> None:
    silent = make_coordinator(tmp_path / "c", port=free_port())
    state = join_federation(silent, tmp_path / "state", "a").state
    found = module.coordinator(state)
    assert found is not None
    assert "Nothing answers" in found[0]
    assert module.clock(state) is None


def test_a_missing_nginx_is_named_by_doctor(
    member: Any, gateway: CoordinatorGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise GatewayFailed("The gateways need nginx.")

    monkeypatch.setattr(module, "program", missing)
    (member.state / "hospital.json").write_text("{}")
    wrong = {one.subject: one.wrong for one in findings(member.state) if one.wrong}
    assert "need nginx" in wrong["nginx"]
    assert "certificate" not in wrong
