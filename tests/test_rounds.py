"""Enrolment lets in whom the study names; the loop waits no longer than it says and goes on where it was."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedward.common.config import EnrolledHospital, LocalSettings, Study
from fedward.common.errors import CheckpointRefused, QuorumMissed
from fedward.common.files import canonical_json
from fedward.common.messages import ANCHOR, CONFIG, FISHER
from fedward.common.models import build_student, parameter_count
from fedward.common.npz_files import archive_bytes
from fedward.server.asking import Asking
from fedward.server.checkpoint import Progress, load_checkpoint, save_checkpoint
from fedward.server.roster import Roster, enrol
from fedward.server.rounds import START, initial_latents, run_rounds
from fedward.server.study_folder import StudyFolder

Answer = Callable[[Message], Message | None]


class ScriptedGrid(Grid):
    """Nodes that answer from a script; None is no answer yet."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.answers = answers
        self.pushed: list[Message] = []
        self.pulls = 0

    def get_node_ids(self) -> list[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        first = len(self.pushed)
        self.pushed += messages
        return [str(number) for number in range(first, len(self.pushed))]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.pulls += 1
        asked = [self.pushed[int(message_id)] for message_id in message_ids]
        found = [self.answers[message.metadata.dst_node_id](message) for message in asked]
        return [reply for reply in found if reply is not None]

    def _unused(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    set_run = create_message = send_and_receive = _unused
    run = property(_unused)


def _profile(value: Any) -> Answer:
    def answer(question: Message) -> Message:
        return Message(RecordDict({CONFIG: ConfigRecord({"profile": value})}), reply_to=question)

    return answer


def _claims(name: Any, num_examples: Any) -> Answer:
    return _profile(canonical_json({"name": name, "num_examples": num_examples}))


def _fails(question: Message) -> Message:
    return Message(Error(2, "raised"), reply_to=question)


def _says_nothing(question: Message) -> Message:
    return Message(RecordDict(), reply_to=question)


def _never(question: Message) -> None:
    return None


def _enrolled(grid: Grid, study: Study, seconds: float) -> dict[int, EnrolledHospital]:
    roster = Roster(grid, study)
    enrol(roster, study, seconds)
    return roster.nodes


def _replies(grid: ScriptedGrid, study: Study, node_ids: Iterable[int], seconds: float) -> Iterator[Message]:
    roster = Roster(ScriptedGrid({node_id: HONEST[node_id] for node_id in node_ids}), study)
    roster.look()
    messages = [Message(RecordDict(), node_id, "train") for node_id in node_ids]
    return Asking(grid, roster, _unasked, lambda: False, seconds).replies(messages)


def _unasked(node_id: int) -> Message:
    raise AssertionError(f"node {node_id} was asked again")


HONEST = {100: _claims("hospital-0", 30), 101: _claims("hospital-1", 50), 102: _claims("hospital-2", 20)}


@pytest.fixture(scope="module")
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local())


def test_every_hospital_of_the_study_is_enrolled_with_its_frozen_count(study: Study) -> None:
    nodes = _enrolled(ScriptedGrid(dict(HONEST)), study, 5.0)
    assert nodes == dict(zip((100, 101, 102), study.hospitals, strict=True))


def test_enrolment_does_not_wait_once_all_are_there(study: Study) -> None:
    started = time.monotonic()
    _enrolled(ScriptedGrid(dict(HONEST)), study, 60.0)
    assert time.monotonic() - started < 5.0


STRANGERS = {
    "names no hospital": _claims("hospital-9", 30),
    "claims another count": _claims("hospital-0", 31),
    "claims its count as a fraction": _claims("hospital-0", 30.0),
    "claims its count in words": _claims("hospital-0", "30"),
    "takes a name that is taken": _claims("hospital-1", 50),
    "has a list for a name": _claims(["hospital-0"], 30),
    "has no name": _claims(None, 30),
    "says too little": _profile(canonical_json({"name": "hospital-0"})),
    "says a list": _profile(canonical_json(["hospital-0", 30])),
    "says no JSON": _profile(b"\xff\x00"),
    "says another type": _profile([1, 2]),
    "says nothing": _says_nothing,
    "fails": _fails,
    "never answers": _never,
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_node_that_is_not_what_it_should_be_is_left_out(study: Study, case: str) -> None:
    grid = ScriptedGrid({101: HONEST[101], 102: HONEST[102], 100: STRANGERS[case]})
    assert _enrolled(grid, study, 0.2) == {101: study.hospitals[1], 102: study.hospitals[2]}


def test_the_weight_is_the_studys_number_never_the_claim(study: Study) -> None:
    """True == 1 and 30.0 == 30 in Python; neither may become a weight of an integer sum."""
    nodes = _enrolled(ScriptedGrid(dict(HONEST)), study, 5.0)
    assert all(node is hospital for node, hospital in zip(nodes.values(), study.hospitals, strict=True))


def test_fewer_than_the_quorum_is_refused_by_name_and_in_time(study: Study) -> None:
    started = time.monotonic()
    with pytest.raises(QuorumMissed, match="1 of the study's hospitals"):
        _enrolled(ScriptedGrid({100: HONEST[100], 101: _fails, 102: _never}), study, 0.3)
    assert time.monotonic() - started < 3.0


def test_no_node_at_all_is_refused_by_name(study: Study) -> None:
    with pytest.raises(QuorumMissed, match="0 of the study's hospitals"):
        _enrolled(ScriptedGrid({}), study, 0.1)


def test_a_hospital_that_comes_late_is_let_in(study: Study) -> None:
    class Late(ScriptedGrid):
        def get_node_ids(self) -> list[int]:
            self.pulls += 1
            return [100, 101] if self.pulls < 6 else [100, 101, 102]

    assert set(_enrolled(Late(dict(HONEST)), study, 10.0)) == {100, 101, 102}


def test_replies_come_one_pull_at_a_time(study: Study) -> None:
    """One id a call: Flower's Grid gives all that it is asked for at once, and would hold them all."""
    grid = ScriptedGrid(dict(HONEST))
    found = _replies(grid, study, HONEST, 5.0)
    for pulls, _ in enumerate(found, start=1):
        assert grid.pulls == pulls


def test_replies_that_do_not_come_are_waited_for_so_long_and_no_longer(study: Study) -> None:
    grid = ScriptedGrid({100: HONEST[100], 101: _never})
    started = time.monotonic()
    found = list(_replies(grid, study, (101, 100), 0.3))
    assert [reply.metadata.src_node_id for reply in found] == [100]
    assert 0.25 < time.monotonic() - started < 3.0


def test_a_message_that_the_grid_did_not_take_is_not_waited_for(study: Study) -> None:
    class Refusing(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[Any]:
            return ["" for _ in messages]

    grid = Refusing(dict(HONEST))
    assert list(_replies(grid, study, (100,), 60.0)) == []


def test_a_grid_that_gives_a_reply_twice_does_not_stop_the_round(study: Study) -> None:
    class Stuttering(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            return [reply for reply in super().pull_messages(message_ids) for _ in range(2)]

    grid = Stuttering(dict(HONEST))
    found = list(_replies(grid, study, HONEST, 5.0))
    assert len(found) == 6


def _folder(path: Path, study: Study) -> StudyFolder:
    folder = StudyFolder(path / "study")
    folder.create(study, None)
    return folder


def test_a_study_whose_rounds_are_all_closed_needs_no_hospital_any_more(tmp_path: Path, study: Study) -> None:
    folder, count = _folder(tmp_path, study), parameter_count(build_student(study.local.spec))
    latents = np.ones(count, np.float32)
    save_checkpoint(folder.checkpoint, Progress(3, latents, latents, 4.0 * latents, []), study)
    np.testing.assert_array_equal(run_rounds(ScriptedGrid({}), folder), np.full(count, 4.0, np.float32))


def test_a_damaged_checkpoint_stops_the_study_before_anybody_is_asked(tmp_path: Path, study: Study) -> None:
    folder, grid = _folder(tmp_path, study), ScriptedGrid(dict(HONEST))
    folder.checkpoint.write_bytes(b"FWDCKPT1 and no more")
    with pytest.raises(CheckpointRefused):
        run_rounds(grid, folder)
    assert grid.pushed == []
    assert folder.checkpoint.read_bytes() == b"FWDCKPT1 and no more"


def test_a_start_from_the_seed_is_the_same_again_and_one_from_the_system_is_not(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    seeded, system = make_study(make_local(), seed=5), make_study(make_local(), seed=None)
    np.testing.assert_array_equal(initial_latents(seeded), initial_latents(seeded))
    assert not np.array_equal(initial_latents(system), initial_latents(system))


@pytest.fixture
def ewc_study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(ewc_lambda=1.0), parent="a" * 64, version=2)


def _fixed(study: Study) -> dict[str, np.ndarray]:
    count = parameter_count(build_student(study.local.spec))
    return {name: np.full(count, 0.5, np.float32) for name in (START, ANCHOR, FISHER)}


def _refused(folder: StudyFolder) -> str:
    with pytest.raises(CheckpointRefused) as caught:
        run_rounds(ScriptedGrid({}), folder)
    return str(caught.value)


def test_a_continual_study_without_its_fixed_vectors_does_not_start_from_scratch(
    tmp_path: Path, ewc_study: Study
) -> None:
    folder = _folder(tmp_path, ewc_study)
    assert "fixed.npz" in _refused(folder)


@pytest.mark.parametrize("name", [START, ANCHOR, FISHER])
@pytest.mark.parametrize("change", ["missing", "another length", "another type"])
def test_a_fixed_vector_that_is_missing_or_of_another_shape_is_refused_by_name(
    tmp_path: Path, ewc_study: Study, name: str, change: str
) -> None:
    folder, fixed = _folder(tmp_path, ewc_study), _fixed(ewc_study)
    vector = fixed.pop(name)
    if change != "missing":
        fixed[name] = vector[:-1] if change == "another length" else vector.astype(np.float64)
    folder.fixed.write_bytes(archive_bytes(fixed))
    assert name in _refused(folder)


def test_damaged_fixed_vectors_are_refused_by_name(tmp_path: Path, ewc_study: Study) -> None:
    folder = _folder(tmp_path, ewc_study)
    data = archive_bytes(_fixed(ewc_study))
    for damaged in (b"", data[:100], data[: len(data) // 2], data[:-1], _flipped(data, len(data) // 2)):
        folder.fixed.write_bytes(damaged)
        assert "damaged" in _refused(folder)


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_a_continual_study_starts_at_the_release_that_it_continues(
    tmp_path: Path, ewc_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*args: object, **more: object) -> None:
        raise QuorumMissed("Nobody is there.")

    folder = _folder(tmp_path, ewc_study)
    folder.fixed.write_bytes(archive_bytes(_fixed(ewc_study)))
    monkeypatch.setattr("fedward.server.rounds.enrol", nobody)
    with pytest.raises(QuorumMissed):
        run_rounds(ScriptedGrid({}), folder)
    begun = load_checkpoint(folder.checkpoint, ewc_study)
    assert begun.server_round == 0
    np.testing.assert_array_equal(begun.latents, _fixed(ewc_study)[START])
