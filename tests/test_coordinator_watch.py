"""`fedward coordinator status --watch`: a recorded study as a person sees it."""

import io
import math
import os
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedward.common.config import LocalSettings, Study
from fedward.common.files import canonical_json
from fedward.server import spent
from fedward.server.following import Followed, FollowedOrders
from fedward.server.orders import Orders, Report
from fedward.server.study_folder import PROGRESS, StudyFolder
from fedward.server.watching import state_view, study_view
from fedward.simulations.deployment import COMMAND, wait_for

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LOST = [
    {
        "hospital": "hospital-1",
        "name": "PolicyRefused",
        "message": "The rule hours is [red]closed\x1b[2J now.",
    },
    {"hospital": "hospital-2", "name": "NotConnected", "message": "It was away."},
]
CLOSED: dict[str, Any] = {
    "round": 1,
    "auc": None,
    "replies": 1,
    "seconds": 1800.0,
    "uplink_bytes": 1_500_000,
    "downlink_bytes": 250,
    "refusals": LOST,
    "epsilon": 0.5,
}
RECORDED = [
    {"event": "enrolling", "hospitals": 3, "time": "2026-01-31T11:00:00Z"},
    {"event": "enrolled", "bytes": 120, "time": "2026-01-31T11:00:00Z"},
    {"event": "round", "round": 1, "online": ["hospital-0", "hospital-1"], "time": "2026-01-31T11:00:00Z"},
    {"event": "reply", "hospital": "hospital-0", "time": "2026-01-31T11:30:00Z"},
    {"event": "closed", **CLOSED, "time": "2026-01-31T11:30:00Z"},
    {"event": "round", "round": 2, "online": ["hospital-0", "hospital-1"], "time": "2026-01-31T11:59:00Z"},
    {"event": "reply", "hospital": "hospital-1", "time": "2026-01-31T11:59:30Z"},
    {"event": "of a later version", "time": 5},
    {"event": "reply", "hospital": "a stranger", "time": "2026-01-31T11:59:40Z"},
]


@pytest.fixture
def folder(
    tmp_path: Path, make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> StudyFolder:
    made = StudyFolder(tmp_path / "s")
    made.create(make_study(make_local(rounds=4), name="chest", target_epsilon=3.0), None)
    (made.path / PROGRESS).write_bytes(b"".join(canonical_json(event) + b"\n" for event in RECORDED))
    return made


def _shown(of: Followed, now: datetime = NOON) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(study_view("running", of, now))
    return out.getvalue()


def test_it_shows_rounds_sites_epsilon_bytes_and_who_was_lost(folder: StudyFolder) -> None:
    text = _shown(Followed(folder).look())
    for expected in (
        "chest running, training",
        "1 of 4 last 30 min, about 1 h 30 min left",
        "1 of 3 of round 2",
        "epsilon 0.500 of 3 a site | in 1.5 MB, out 250 B | 1 replies, 2 lost",
        "hospital-2: NotConnected: It was away.",
    ):
        assert expected in text
    lines = [line.split() for line in text.splitlines() if "ago" in line or "never" in line]
    sites = {words[1]: words[2:-1] for words in lines}
    assert sites["hospital-0"] == ["asked", "1", "min", "ago"]
    assert sites["hospital-1"] == ["answered", "30", "s", "ago"]
    assert sites["hospital-2"] == ["away", "never"]


def test_texts_of_hospitals_steer_neither_the_terminal_nor_the_markup(folder: StudyFolder) -> None:
    text = _shown(Followed(folder).look())
    assert "[red]closed\\x1b[2J now." in text
    assert "\x1b" not in text


def test_it_follows_what_is_added(folder: StudyFolder) -> None:
    followed = Followed(folder).look()
    folder.note("reply", hospital="hospital-0")
    assert "2 of 3 of round 2" in _shown(followed.look())
    folder.note("finished")
    assert "chest running, finished" in _shown(followed.look())


def test_of_many_sites_those_that_are_away_come_first(
    tmp_path: Path, make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    many = StudyFolder(tmp_path / "many")
    many.create(make_study(make_local(), (10,) * 40, quorum=1), None)
    many.note("round", round=1, online=[f"hospital-{number}" for number in range(39)])
    text = _shown(Followed(many).look(), NOON + timedelta(days=900))
    assert "hospital-39" in text
    assert "and 28 more" in text
    assert len(text.splitlines()) < 24


def test_the_command_shows_the_state_until_it_is_told_to_stop(folder: StudyFolder, tmp_path: Path) -> None:
    orders = Orders(tmp_path / "c")
    order = orders.give(folder.path, True)
    orders.report(order, Report("running", "", 7, order.number))
    out = io.StringIO()
    view = state_view(tmp_path / "c", FollowedOrders(tmp_path / "c"), NOON)
    Console(file=out, width=100).print(view)
    assert "The coordinator is down" in out.getvalue()
    command = [*COMMAND, "coordinator", "status", "--watch", "--state", str(tmp_path / "c")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "FORCE_COLOR": "1"}
        )
        try:
            wait_for(lambda: b"chest" in (tmp_path / "log").read_bytes())
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_person_and_a_program_are_not_served_at_once(fedward: Callable[..., Any], tmp_path: Path) -> None:
    done = fedward("coordinator", "status", "--watch", "--json", "--state", tmp_path / "c")
    assert done.code == 1
    assert "SettingRefused" in done.err


def test_a_cost_without_a_finite_bound_is_unknown_and_ends_no_study(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spent, "spent_after", lambda *_: math.inf)
    folder.note("closed", **{**CLOSED, "epsilon": spent.noted_cost(folder.study(), 1)})
    assert "epsilon unknown of 3" in _shown(Followed(folder).look())
