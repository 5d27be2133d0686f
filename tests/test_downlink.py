"""Models that travel as differences: every hospital trains from the very same one, whatever it lost."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fedward.client import hospital as hospital_module
from fedward.client.app import app as client_app
from fedward.client.hospital import open_hospital
from fedward.common.codec import CODECS, DIFFERENCES, decode, encode
from fedward.common.config import LocalSettings, Study
from fedward.common.differences import decode_difference, replica_digest
from fedward.common.errors import QuorumMissed, ReplicaUnknown
from fedward.common.messages import ANCHOR, FISHER, LATENTS, TrainReply, TrainRequest, refusal_reply
from fedward.common.npz_files import archive_bytes
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server.app import app as server_app
from fedward.server.checkpoint import Progress, load_checkpoint
from fedward.server.downlink import outgoing
from fedward.server.rounds import START, initial_latents
from fedward.server.study_folder import StudyFolder
from fedward.simulations.federation import InProcessGrid

HOSPITALS, ROUNDS, COUNT = 3, 4, 500
Federation = Callable[..., StudyFolder]
Question = Callable[[int, int], bool]


def gaussian(seed: int, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


# One model, packed


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_both_forms_of_a_model_lead_to_the_same_bits(codec: str) -> None:
    replica = gaussian(1)
    found = outgoing(Progress(3, gaussian(2), gaussian(3), gaussian(4), replica=replica), codec)
    assert found.difference is not None
    assert found.base == replica_digest(replica)
    assert found.digest == replica_digest(found.model)
    assert decode(found.full, COUNT, "fp32").tobytes() == found.model.tobytes()
    assert decode_difference(found.difference, replica, codec).tobytes() == found.model.tobytes()


@pytest.mark.parametrize("codec", DIFFERENCES)
def test_a_studys_first_model_travels_in_full_in_8_bits(codec: str) -> None:
    found = outgoing(Progress.start(gaussian(2)), codec)
    assert (found.difference, found.base) == (None, "")
    assert decode(found.full, COUNT, "int8").tobytes() == found.model.tobytes()
    assert found.digest == replica_digest(found.model)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_model_in_full_travels_as_ever_and_names_nothing(codec: str) -> None:
    found = outgoing(Progress.start(gaussian(2)), codec)
    assert found.full.tobytes() == encode(gaussian(2), codec).tobytes()
    assert (found.difference, found.digest, found.base) == (None, "", "")


# A federation


class Wire(InProcessGrid):
    """Notes what went down to whom, and loses the questions of `loses(node_id, server_round)`."""

    def __init__(self, folder: StudyFolder, loses: Question = lambda node_id, server_round: False) -> None:
        super().__init__(client_app, HOSPITALS, {STUDY_FOLDER: str(folder.path)})
        self.sent: list[tuple[int, TrainRequest]] = []
        self.before: Callable[[int, TrainRequest], None] = lambda node_id, request: None
        self._loses = loses

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._carried(message) for message in messages]

    def _carried(self, message: Message) -> str:
        if message.metadata.message_type != "train":
            return self._push(message)
        request, node_id = TrainRequest.from_records(message.content), message.metadata.dst_node_id
        if self._loses(node_id, request.server_round):
            return ""
        self.before(node_id, request)
        self.sent.append((node_id, request))
        return self._push(message)

    def forms(self, node_id: int) -> list[tuple[int, str]]:
        """(round, full or difference) of every question to a node."""
        own = [request for node, request in self.sent if node == node_id]
        return [
            (one.server_round, "difference" if one.replica and one.replica.base else "full") for one in own
        ]


def run(grid: Wire, folder: StudyFolder) -> Progress:
    open_hospital.cache_clear()
    config = {STUDY_FOLDER: str(folder.path)}
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config))
    return load_checkpoint(folder.checkpoint, folder.study())


@pytest.fixture(scope="module")
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(
        make_local(rounds=ROUNDS),
        quorum=2,
        averaged_rounds=2,
        round_timeout=60.0,
        uplink_codec="coded3",
        downlink_codec="diff3",
    )


@pytest.fixture
def federation(make_federation: Federation, study: Study, tmp_path: Path) -> Callable[[str], StudyFolder]:
    return lambda name: make_federation(tmp_path / name, study, with_reference=False)


@pytest.fixture(scope="module")
def calm(make_federation: Federation, study: Study, tmp_path_factory: pytest.TempPathFactory) -> Progress:
    folder = make_federation(tmp_path_factory.mktemp("calm"), study, with_reference=False)
    return run(Wire(folder), folder)


FULL, DIFFERENCE = "full", "difference"
EACH_ROUND = [(1, FULL), (2, DIFFERENCE), (3, DIFFERENCE), (4, DIFFERENCE)]


def test_after_the_first_round_every_hospital_gets_differences(
    federation: Callable[[str], StudyFolder],
) -> None:
    folder = federation("all")
    grid = Wire(folder)
    progress = run(grid, folder)
    for node_id in (100, 101, 102):
        assert grid.forms(node_id) == EACH_ROUND
    weights = len(progress.latents)
    sizes = {one.server_round: len(one.vectors[LATENTS]) for _, one in grid.sent}
    assert sizes[1] > weights
    assert max(sizes[number] for number in (2, 3, 4)) < 3.1 / 8 * weights + 100
    assert [row["refusals"] for row in progress.history] == [[]] * ROUNDS
    assert set(progress.held.values()) == {replica_digest(progress.replica)}


def test_a_hospital_that_missed_rounds_gets_the_full_model_and_then_differences(
    federation: Callable[[str], StudyFolder],
) -> None:
    folder = federation("missing")
    grid = Wire(folder, lambda node_id, server_round: node_id == 102 and server_round == 2)
    progress = run(grid, folder)
    assert grid.forms(102) == [(1, FULL), (3, FULL), (4, DIFFERENCE)]
    assert grid.forms(100) == EACH_ROUND
    assert [row["replies"] for row in progress.history] == [3, 2, 3, 3]


def lost_disk(folder: StudyFolder, at: int) -> Callable[[int, TrainRequest], None]:
    def lose(node_id: int, request: TrainRequest) -> None:
        if (node_id, request.server_round) == (101, at) and request.replica and request.replica.base:
            for path in (folder.path / "hospitals" / "1" / "replicas").iterdir():
                path.unlink()

    return lose


def test_a_hospital_that_lost_its_disk_gets_the_full_model_in_the_same_round(
    federation: Callable[[str], StudyFolder], calm: Progress
) -> None:
    folder = federation("lost")
    grid = Wire(folder)
    grid.before = lost_disk(folder, 3)
    progress = run(grid, folder)
    assert grid.forms(101) == [(1, FULL), (2, DIFFERENCE), (3, DIFFERENCE), (3, FULL), (4, DIFFERENCE)]
    assert [row["replies"] for row in progress.history] == [3] * ROUNDS
    assert [row["refusals"] for row in progress.history] == [[]] * ROUNDS
    assert progress.latents.tobytes() == calm.latents.tobytes()


def test_a_round_is_the_same_content_in_full_or_as_a_difference(
    federation: Callable[[str], StudyFolder],
) -> None:
    folder = federation("digests")
    grid = Wire(folder)
    grid.before = lost_disk(folder, 3)
    run(grid, folder)
    by_round: dict[int, set[str]] = {}
    for _, request in grid.sent:
        by_round.setdefault(request.server_round, set()).add(request.content_digest)
    assert [len(by_round[number]) for number in range(1, ROUNDS + 1)] == [1] * ROUNDS
    assert len(set.union(*by_round.values())) == ROUNDS


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("reply", [2, 4, 9])
def test_a_coordinator_that_is_killed_at_any_reply_ends_in_the_same_model(
    federation: Callable[[str], StudyFolder], calm: Progress, monkeypatch: pytest.MonkeyPatch, reply: int
) -> None:
    folder, count = federation("killed"), 0

    def note(self: StudyFolder, kind: str, **what: Any) -> None:
        nonlocal count
        count += kind == "reply"
        if kind == "reply" and count == reply:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(StudyFolder, "note", note)
        with pytest.raises(Crash):
            run(Wire(folder), folder)
    progress = run(Wire(folder), folder)
    assert progress.latents.tobytes() == calm.latents.tobytes()
    assert progress.replica is not None
    assert calm.replica is not None
    assert progress.replica.tobytes() == calm.replica.tobytes()


def test_a_hospital_that_is_killed_before_it_trains_answers_when_it_is_asked_again(
    federation: Callable[[str], StudyFolder], calm: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, count, train = federation("killed hospital"), 0, hospital_module.train

    def dies(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:  # the second hospital's, in round 2
            raise Crash
        return train(*arguments)

    monkeypatch.setattr(hospital_module, "train", dies)
    with pytest.raises(Crash):
        run(Wire(folder), folder)
    progress = run(Wire(folder), folder)
    assert progress.latents.tobytes() == calm.latents.tobytes()


def test_nothing_of_a_studys_models_stays_at_a_hospital_after_its_last_round(
    federation: Callable[[str], StudyFolder],
) -> None:
    folder = federation("ended")
    kept: list[int] = []
    grid = Wire(folder)
    grid.before = lambda node_id, request: kept.append(
        len(list((folder.path / "hospitals" / "0" / "replicas").glob("*.vector")))
    )
    run(grid, folder)
    assert max(kept) == 2
    assert list((folder.path / "hospitals" / "0" / "replicas").iterdir()) == []


# What hospitals say of what they hold


class Answers(Wire):
    """One node's answers to training are changed on their way."""

    def __init__(self, folder: StudyFolder, change: Callable[[Message], Message], *nodes: int) -> None:
        super().__init__(folder)
        self._change, self._nodes = change, nodes

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in super().pull_messages(message_ids):
            is_changed = reply.metadata.message_type == "train" and reply.metadata.src_node_id in self._nodes
            yield self._change(reply) if is_changed else reply


def insisting(reply: Message) -> Message:
    """Whatever it gets, it lacks the base."""
    question = Message(RecordDict(), reply.metadata.src_node_id, "train")
    refused = refusal_reply(ReplicaUnknown("No."), question)
    for name in ("_src_node_id", "_reply_to_message_id"):
        refused.metadata.__dict__[name] = reply.metadata.__dict__[name]
    return refused


def from_round_3(reply: Message) -> Message:
    is_early = TrainReply.from_records(reply.content).server_round < 3
    return reply if is_early else insisting(reply)


def test_a_hospital_that_lacks_the_full_model_too_is_lost_and_not_asked_without_end(
    federation: Callable[[str], StudyFolder],
) -> None:
    folder = federation("insisting")
    grid = Answers(folder, insisting, 102)
    progress = run(grid, folder)
    assert grid.forms(102) == [(number, FULL) for number in range(1, ROUNDS + 1)]
    for row in progress.history:
        assert [(lost["hospital"], lost["name"]) for lost in row["refusals"]] == [
            ("hospital-2", "ReplicaUnknown")
        ]


def test_a_hospital_that_goes_on_losing_its_model_costs_one_more_question_a_round(
    federation: Callable[[str], StudyFolder],
) -> None:
    folder = federation("losing")
    grid = Answers(folder, from_round_3, 102)
    progress = run(grid, folder)
    assert grid.forms(102) == [(1, FULL), (2, DIFFERENCE), (3, DIFFERENCE), (3, FULL), (4, FULL)]
    assert [row["replies"] for row in progress.history] == [3, 3, 2, 2]


def naming(digest: str) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        content = TrainReply.from_records(reply.content)
        reply.content = replace(content, replica=digest).to_records()
        return reply

    return change


@pytest.mark.parametrize("digest", ["ab" * 32, ""])
def test_an_update_of_another_model_or_of_none_does_not_count(
    federation: Callable[[str], StudyFolder], digest: str
) -> None:
    folder = federation("another")
    progress = run(Answers(folder, naming(digest), 102), folder)
    for row in progress.history:
        (lost,) = row["refusals"]
        assert (lost["hospital"], lost["name"]) == ("hospital-2", "UpdateRefused")
        assert "of model" in lost["message"]
    assert set(progress.held) == {"hospital-0", "hospital-1"}


def test_a_round_that_missed_its_quorum_is_asked_again_as_it_was(
    federation: Callable[[str], StudyFolder], calm: Progress
) -> None:
    folder = federation("quorum")
    with pytest.raises(QuorumMissed):
        run(Answers(folder, from_round_3, 101, 102), folder)
    grid = Wire(folder)
    progress = run(grid, folder)
    assert grid.forms(101)[0] == (3, DIFFERENCE)
    assert progress.latents.tobytes() == calm.latents.tobytes()


def test_anchor_and_fisher_travel_with_a_full_model_only_in_8_bits(
    make_federation: Federation,
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
    tmp_path: Path,
) -> None:
    study = make_study(make_local(rounds=3, ewc_lambda=0.1), downlink_codec="diff2", uplink_codec="coded4")
    folder = make_federation(tmp_path / "ewc", study, with_reference=False)
    start = initial_latents(study)
    fixed = {START: start, ANCHOR: start, FISHER: np.ones_like(start)}
    folder.fixed.write_bytes(archive_bytes(fixed))
    grid = Wire(folder)
    grid.before = lost_disk(folder, 3)
    progress = run(grid, folder)
    assert [row["replies"] for row in progress.history] == [3] * 3
    assert grid.forms(101)[-2:] == [(3, DIFFERENCE), (3, FULL)]
    for _, asked in grid.sent:
        assert asked.replica is not None
        assert set(asked.replica.fixed) == {ANCHOR, FISHER}
        assert set(asked.vectors) == ({LATENTS} if asked.replica.base else {LATENTS, ANCHOR, FISHER})
        if not asked.replica.base:
            assert asked.vectors[ANCHOR].tobytes()[:5] == b"FWD1" + bytes([CODECS["int8"]])
