"""Orders are obeyed, a study whose process died is started again, and a refusal waits for a person."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.common.config import LocalSettings, Study
from fedward.common.errors import CheckpointRefused, EngineFailed, EnrolmentRefused, SettingRefused
from fedward.common.supervision import Supervisor
from fedward.server import launching
from fedward.server.coordinator import Coordinator
from fedward.server.launching import Launcher
from fedward.server.orders import FINISHED, REFUSED, RUNNING, STOPPED, WAITING, Orders
from fedward.server.processes import Link, run_coordinator
from fedward.server.study_folder import StudyFolder


class FakeControl:
    """Numbers runs and remembers which were stopped."""

    def __init__(self) -> None:
        self.started: list[Path] = []
        self.stopped: list[int] = []
        self.is_down = False

    def start(self, folder: Path) -> int:
        if self.is_down:
            raise EngineFailed("SuperLink does not answer.")
        self.started.append(folder)
        return len(self.started)

    def stop(self, run_id: int) -> None:
        self.stopped.append(run_id)


@pytest.fixture
def study(
    tmp_path: Path, make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> StudyFolder:
    folder = StudyFolder(tmp_path / "study")
    folder.create(make_study(make_local()), None)
    return folder


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(tmp_path / "c")


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def launcher(orders: Orders, control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    monkeypatch.setattr(launching, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(launching, "_FIRST_PAUSE", 0.0)
    return Launcher(orders, control)  # type: ignore[arg-type]


def _state(orders: Orders) -> str:
    (order,) = orders.all()
    return orders.report_of(order).state


def test_a_study_that_is_wanted_is_started_once(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    orders.give(study.path, True)
    assert _state(orders) == WAITING
    for _ in range(3):
        launcher.tick()
    assert control.started == [study.path]
    with study.held():
        launcher.tick()
        assert _state(orders) == RUNNING


def _die_once(launcher: Launcher, orders: Orders, study: StudyFolder) -> None:
    """The study is ordered and taken up; then its process is gone, for two looks."""
    orders.give(study.path, True)
    launcher.tick()
    with study.held():
        launcher.tick()
    for _ in range(2):
        launcher.tick()


def test_a_study_whose_process_died_is_stopped_and_started_again(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    _die_once(launcher, orders, study)
    assert control.stopped == [1]
    assert len(control.started) == 2


def test_a_run_that_never_came_to_life_is_started_again(
    launcher: Launcher,
    orders: Orders,
    control: FakeControl,
    study: StudyFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders.give(study.path, True)
    launcher.tick()
    monkeypatch.setattr(launching, "_START_SECONDS", 0.0)
    for _ in range(2):
        launcher.tick()
    assert len(control.started) == 2


def _refuse(launcher: Launcher, orders: Orders, study: StudyFolder, name: str) -> None:
    orders.give(study.path, True)
    launcher.tick()
    with study.held():
        launcher.tick()
        study.note("refused", name=name, message="See here.")
    for _ in range(3):
        launcher.tick()


def test_a_refusal_waits_for_a_person_and_is_shown_by_name(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    _refuse(launcher, orders, study, "CheckpointRefused")
    (order,) = orders.all()
    assert len(control.started) == 1
    assert orders.report_of(order).state == REFUSED
    assert orders.report_of(order).said == "CheckpointRefused: See here."
    orders.give(study.path, True)  # the person has mended it, and says so
    launcher.tick()
    assert len(control.started) == 2


def test_a_missed_quorum_is_tried_again_because_hospitals_come_back(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    _refuse(launcher, orders, study, "QuorumMissed")
    assert len(control.started) == 2


def test_a_refusal_of_an_earlier_run_is_not_this_ones(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    study.note("refused", name="CheckpointRefused", message="Long ago.")
    _die_once(launcher, orders, study)
    assert len(control.started) == 2


def test_a_stopped_study_is_not_worked_for_any_more(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    orders.give(study.path, True)
    launcher.tick()
    orders.give(study.path, False)
    for _ in range(2):
        launcher.tick()
    assert (control.stopped, len(control.started), _state(orders)) == ([1], 1, STOPPED)


def test_a_finished_study_is_never_started(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    np.save(study.final, np.zeros(3, np.float32))
    orders.give(study.path, True)
    launcher.tick()
    assert (control.started, _state(orders)) == ([], FINISHED)


def test_a_superlink_that_is_down_is_tried_again(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    control.is_down = True
    orders.give(study.path, True)
    launcher.tick()
    assert _state(orders) == WAITING
    control.is_down = False
    launcher.tick()
    assert control.started == [study.path]


def test_a_new_coordinator_goes_on_with_what_the_last_one_was_told(
    launcher: Launcher, orders: Orders, control: FakeControl, study: StudyFolder
) -> None:
    orders.give(study.path, True)
    launcher.tick()
    successor = FakeControl()
    Launcher(orders, successor).tick()  # type: ignore[arg-type]
    assert successor.started == [study.path]


def test_a_study_whose_folder_is_gone_is_refused_by_name_and_shown(
    launcher: Launcher, orders: Orders, control: FakeControl, tmp_path: Path, fedward: Callable[..., Any]
) -> None:
    orders.give(tmp_path / "gone", True)
    launcher.tick()
    assert (control.started, _state(orders)) == ([], REFUSED)
    status = fedward("coordinator", "status", "--state", tmp_path / "c", "--json")
    assert status.code == 0
    assert "CheckpointRefused" in json.loads(status.out)["studies"][0]["said"]


def test_orders_are_given_by_the_commands_and_only_for_a_study(
    orders: Orders, study: StudyFolder, tmp_path: Path, fedward: Callable[..., Any]
) -> None:
    state = ("--state", tmp_path / "c")
    assert fedward("coordinator", "start", study.path, *state).code == 0
    assert [order.wanted for order in orders.all()] == [True]
    assert fedward("coordinator", "stop", study.path, *state).code == 0
    assert [(order.wanted, order.number) for order in orders.all()] == [(False, 2)]
    for command in ("start", "stop", "resume"):
        assert fedward("coordinator", command, tmp_path / "gone", *state).err.startswith("CheckpointRefused")
    assert "no checkpoint" in fedward("coordinator", "resume", study.path, *state).err
    assert len(orders.all()) == 1


def test_hospitals_are_let_in_and_out_while_the_coordinator_is_up(
    tmp_path: Path, make_coordinator: Callable[..., Coordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = make_coordinator(tmp_path / "c")
    done: list[str] = []

    def change(*args: object) -> None:
        with coordinator.lock:
            done.append("changed")

    monkeypatch.setattr(Supervisor, "run", change)
    run_coordinator(tmp_path / "c", threading.Event())
    assert done == ["changed"]


def test_a_federations_coordinator_is_never_run_without_its_gateway(
    tmp_path: Path, make_coordinator: Callable[..., Coordinator], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_coordinator(tmp_path / "c")
    with pytest.raises(EnrolmentRefused, match="gateway"):
        run_coordinator(tmp_path / "c", threading.Event(), trial_port=20_001)
    given: list[list[str]] = []
    monkeypatch.setattr(Supervisor, "__init__", lambda self, folder, programs, about: given.append(programs))
    monkeypatch.setattr(Supervisor, "run", lambda *_: None)
    run_coordinator(tmp_path / "c", threading.Event())
    superlink, superexec, gateway = given[0]
    assert "--insecure" not in [*superlink.command, *superexec.command]
    assert "--enable-supernode-auth" in superlink.command
    assert "fedward.server.gateway_process" in gateway.command


def test_up_without_a_federation_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentRefused, match="coordinator init"):
        run_coordinator(tmp_path / "c", threading.Event())


class FakePublishing:
    """Says one after another what it is given."""

    def __init__(self, *said: str | None) -> None:
        self.said = list(said)

    def look(self, folder: StudyFolder) -> str | None:
        return self.said.pop(0)


def test_a_study_is_finished_when_its_release_is_published(
    orders: Orders, control: FakeControl, study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_LOOK_SECONDS", 0.0)
    np.save(study.final, np.zeros(3, np.float32))
    orders.give(study.path, True)
    launcher = Launcher(orders, control, FakePublishing(None, ""))  # type: ignore[arg-type]
    states = []
    for _ in range(3):
        launcher.tick()
        states.append(_state(orders))
    assert states == [RUNNING, FINISHED, FINISHED]


def test_a_release_that_is_refused_waits_for_a_person(
    orders: Orders, control: FakeControl, study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_LOOK_SECONDS", 0.0)
    np.save(study.final, np.zeros(3, np.float32))
    launcher = Launcher(orders, control, FakePublishing("GoldenRefused: It differs.", ""))  # type: ignore[arg-type]
    orders.give(study.path, True)
    for _ in range(2):
        launcher.tick()
    assert _state(orders) == REFUSED
    orders.give(study.path, True)
    launcher.tick()
    assert _state(orders) == FINISHED


def test_a_damaged_order_is_refused_by_its_files_name(orders: Orders, tmp_path: Path) -> None:
    orders.give(tmp_path, True)
    (file,) = (tmp_path / "c" / "orders").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointRefused, match=file.name):
        orders.all()


@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(SettingRefused):
        Link(port)
