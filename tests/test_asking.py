"""A round asks again whom it lost, waits for whom it needs, and no longer than its deadline."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedward.common.config import LocalSettings, Study
from fedward.common.files import canonical_json
from fedward.common.messages import CONFIG
from fedward.common.reply_codes import NO_DAEMON, UNPROVEN
from fedward.server import asking as asking_module
from fedward.server import pauses as pauses_module
from fedward.server.asking import Asking
from fedward.server.roster import Roster

TRAIN = "train"


class Site:
    """A node: what it claims to be, since when it is there, and how it answers a round."""

    def __init__(self, name: str, count: int, answers: bool = True, since: str = "0") -> None:
        self.name, self.count, self.since = name, count, since
        self.answers, self.is_online = answers, True
        self.asked = 0

    def reply(self, message: Message) -> Message | None:
        if message.metadata.message_type != TRAIN:
            profile = canonical_json({"name": self.name, "num_examples": self.count})
            return Message(RecordDict({CONFIG: ConfigRecord({"profile": profile})}), reply_to=message)
        return Message(RecordDict(), reply_to=message) if self.answers else None


class SitesGrid(Grid):
    """Nodes that come and go as Flower's do: what a node was asked before it went is lost."""

    def __init__(self, sites: dict[int, Site]) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.sites = sites
        self.pushed: list[tuple[Message, str]] = []
        self.looks = 0
        self.on_look: Callable[[int], None] = lambda number: None

    def get_nodes(self) -> list[NodeInfo]:
        self.looks += 1
        self.on_look(self.looks)
        return [
            NodeInfo(node_id=node_id, last_activated_at=site.since)
            for node_id, site in self.sites.items()
            if site.is_online
        ]

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        first = len(self.pushed)
        for message in messages:
            site = self.sites[message.metadata.dst_node_id]
            site.asked += message.metadata.message_type == TRAIN
            self.pushed.append((message, site.since))
        return [str(number) for number in range(first, len(self.pushed))]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [reply for message_id in message_ids if (reply := self._reply(int(message_id)))]

    def _reply(self, number: int) -> Message | None:
        message, since = self.pushed[number]
        site = self.sites[message.metadata.dst_node_id]
        if not site.is_online:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE), reply_to=message)
        return site.reply(message) if site.since == since else None

    def _unused(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    set_run = create_message = send_and_receive = _unused
    run = property(_unused)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking_module, "_POLL_SECONDS", 0.005)
    monkeypatch.setattr(asking_module, "_LOOK_SECONDS", 0.02)


@pytest.fixture
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(), (30, 50))


def _round(
    grid: SitesGrid, study: Study, seconds: float = 10.0, quorum: int = 2, **more: Any
) -> tuple[list[int], Asking, Roster]:
    """Who replied with content, in order, once the round was closed."""
    roster = Roster(grid, study)
    roster.look()
    came: list[int] = []
    asking = Asking(
        grid,
        roster,
        lambda node_id: Message(RecordDict(), node_id, TRAIN),
        lambda: len(came) < quorum,
        seconds,
        **more,
    )
    questions = [Message(RecordDict(), node_id, TRAIN) for node_id in roster.online.values()]
    for reply in asking.replies(questions):
        if reply.has_content():
            came.append(reply.metadata.src_node_id)
    return came, asking, roster


def _sites() -> dict[int, Site]:
    return {100: Site("hospital-0", 30), 101: Site("hospital-1", 50)}


def _restarting() -> SitesGrid:
    """Two hospitals, of which the second answers nothing until its node is started anew."""
    grid = SitesGrid(_sites())
    grid.sites[101].answers = False

    def restart(number: int) -> None:
        if number == 3:
            grid.sites[101].since, grid.sites[101].answers = "1", True

    grid.on_look = restart
    return grid


def test_each_hospital_is_asked_once_where_all_answer(study: Study) -> None:
    grid = SitesGrid(_sites())
    came, _, _ = _round(grid, study)
    assert sorted(came) == [100, 101]
    assert [site.asked for site in grid.sites.values()] == [1, 1]


def test_a_node_that_was_restarted_under_its_id_is_asked_again(study: Study) -> None:
    grid = _restarting()
    came, _, _ = _round(grid, study)
    assert sorted(came) == [100, 101]
    assert grid.sites[101].asked == 2


def test_a_hospital_that_comes_back_as_another_node_is_asked_there(study: Study) -> None:
    grid = SitesGrid(_sites())
    grid.sites[101].answers = False

    def replace(number: int) -> None:
        if number == 3:
            grid.sites[101].is_online = False
            grid.sites[202] = Site("hospital-1", 50)

    grid.on_look = replace
    came, _, roster = _round(grid, study)
    assert sorted(came) == [100, 202]
    assert roster.nodes[202] is study.hospitals[1]


def test_a_name_belongs_to_the_first_node_for_as_long_as_that_is_there(study: Study) -> None:
    grid = SitesGrid(_sites())
    grid.sites[300] = Site("hospital-1", 50)
    roster = Roster(grid, study)
    roster.look()
    assert roster.online == {"hospital-0": 100, "hospital-1": 101}
    grid.sites[101].is_online = False
    assert roster.look() == {"hospital-1"}
    assert roster.online["hospital-1"] == 300


def test_a_hospital_that_is_away_at_first_is_waited_for_while_the_quorum_needs_it(study: Study) -> None:
    grid = SitesGrid(_sites())
    roster = Roster(grid, study)
    roster.look()
    grid.sites[101].is_online = False
    roster.look()
    grid.on_look = lambda number: setattr(grid.sites[101], "is_online", grid.looks > 4)
    came: list[int] = []
    asking = Asking(
        grid, roster, lambda node_id: Message(RecordDict(), node_id, TRAIN), lambda: len(came) < 2, 10.0
    )
    for reply in asking.replies([Message(RecordDict(), 100, TRAIN)]):
        came.append(reply.metadata.src_node_id)
    assert came == [100, 101]


def test_a_hospital_that_is_gone_is_not_waited_for_once_the_quorum_is_met(study: Study) -> None:
    grid = SitesGrid(_sites())
    grid.sites[101].answers = False
    grid.on_look = lambda number: setattr(grid.sites[101], "is_online", number < 3)
    started = time.monotonic()
    came, _, _ = _round(grid, study, 60.0, quorum=1)
    assert came == [100]
    assert time.monotonic() - started < 20.0


def test_a_silent_hospital_costs_the_deadline_and_no_more(study: Study) -> None:
    grid = SitesGrid(_sites())
    grid.sites[101].answers = False
    started = time.monotonic()
    came, _, _ = _round(grid, study, 0.4)
    assert came == [100]
    assert 0.35 < time.monotonic() - started < 5.0
    assert grid.sites[101].asked == 1


def test_a_hospitals_own_error_is_its_answer_and_it_is_not_asked_again(study: Study) -> None:
    grid = SitesGrid(_sites())
    refusing = grid.sites[101]
    refusing.reply = lambda message: (  # type: ignore[method-assign]
        Message(Error(100, "BudgetRefused: no."), reply_to=message)
        if message.metadata.message_type == TRAIN
        else Site.reply(refusing, message)
    )
    started = time.monotonic()
    came, _, _ = _round(grid, study, 60.0)
    assert (came, refusing.asked) == ([100], 1)
    assert time.monotonic() - started < 20.0


def test_a_hospital_that_wants_another_question_gets_it_at_once_and_within_the_deadline(study: Study) -> None:
    grid = SitesGrid(_sites())
    particular = grid.sites[101]
    questions: list[Message] = []

    def reply(message: Message) -> Message | None:
        if message.metadata.message_type != TRAIN:
            return Site.reply(particular, message)
        questions.append(message)
        is_first = len(questions) == 1
        return (
            Message(Error(100, "No: no."), reply_to=message) if is_first else Site.reply(particular, message)
        )

    particular.reply = reply  # type: ignore[method-assign]
    started = time.monotonic()
    came, _, _ = _round(grid, study, 60.0, wants_another=lambda node_id, reply: reply.has_error())
    assert sorted(came) == [100, 101]
    assert time.monotonic() - started < 20.0
    assert 30.0 < questions[1].metadata.ttl <= 60.0


def test_a_hospital_that_goes_on_failing_is_asked_after_longer_and_longer_pauses(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses_module, "_FIRST_SECONDS", 0.05)
    grid = SitesGrid(_sites())
    failing = grid.sites[101]
    failing.reply = lambda message: (  # type: ignore[method-assign]
        Message(Error(NO_DAEMON, ""), reply_to=message)
        if message.metadata.message_type == TRAIN
        else Site.reply(failing, message)
    )
    came, _, _ = _round(grid, study, 1.5)
    assert came == [100]
    assert 3 <= failing.asked <= 6  # at 0, .05, .15, .35, .75 seconds


def test_a_node_that_could_not_say_who_it_is_is_asked_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses_module, "_FIRST_SECONDS", 0.02)
    grid = SitesGrid(_sites())
    away = grid.sites[101]
    errors = [NO_DAEMON, ErrorCode.MESSAGE_UNAVAILABLE, UNPROVEN]
    away.reply = lambda message: (  # type: ignore[method-assign]
        Message(Error(errors.pop(0), ""), reply_to=message) if errors else Site.reply(away, message)
    )
    roster = Roster(grid, study)
    for _ in range(60):
        roster.look()
        time.sleep(0.005)
    assert roster.online == {"hospital-0": 100, "hospital-1": 101}
    assert len(grid.pushed) == 2 + 3


def test_what_is_asked_again_ends_with_the_round(study: Study) -> None:
    grid = _restarting()
    _round(grid, study, 10.0)
    again = [message for message, _ in grid.pushed if message.metadata.message_type == TRAIN][-1]
    assert 1.0 <= again.metadata.ttl <= 10.0
