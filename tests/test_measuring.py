"""The coordinator asks once, screens and adds up, and figures follow from the counts alone."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedward.client import hospital as hospital_module
from fedward.client.app import app as client_app
from fedward.client.egress_log import LOG
from fedward.client.hospital import open_hospital
from fedward.common.config import LocalSettings, Study
from fedward.common.decision import decide
from fedward.common.errors import CheckpointRefused, QuorumMissed, UpdateRefused
from fedward.common.measure_messages import MEASURE
from fedward.common.measurement import FISHER, METRIC, cells_of, channel_of_weights, measured_sizes
from fedward.common.metrics import accuracy, balanced_accuracy, macro_auc
from fedward.common.models import build_student, parameter_count
from fedward.server import asking
from fedward.server import rounds as rounds_module
from fedward.server.checkpoint import load_checkpoint
from fedward.server.measuring import (
    fisher_of_weights,
    read_fisher,
    read_measured,
    screen_measured,
)
from fedward.server.private_figures import private_figures
from fedward.server.rounds import run_rounds
from fedward.server.study_folder import StudyFolder
from fedward.simulations.federation import InProcessGrid

LocalMaker = Callable[..., LocalSettings]
BOTH = {"metric_noise_multiplier": 6.0, "fisher_noise_multiplier": 7.0}


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def study(make_local: LocalMaker, make_study: Callable[..., Study]) -> Study:
    return make_study(make_local(rounds=1, **BOTH))


@pytest.fixture
def folder(
    tmp_path: Path, study: Study, make_federation: Callable[..., StudyFolder]
) -> Iterator[StudyFolder]:
    open_hospital.cache_clear()
    yield make_federation(tmp_path / "run", study)
    open_hospital.cache_clear()


def _run(folder: StudyFolder) -> InProcessGrid:
    grid = InProcessGrid(client_app, 3, {"study-folder": str(folder.path)})
    run_rounds(grid, folder)
    return grid


def _notes(folder: StudyFolder, event: str) -> list[dict[str, Any]]:
    lines = (folder.path / "progress.jsonl").read_text().splitlines()
    return [note for note in map(json.loads, lines) if note["event"] == event]


def _logged_bytes(folder: StudyFolder, message: str) -> int:
    logs = [path / LOG for path in (folder.path / "hospitals").iterdir()]
    entries = [json.loads(line) for log in logs for line in log.read_bytes().splitlines()]
    return sum(e["body"]["bytes"] for e in entries if e["kind"] == "left" and e["body"]["message"] == message)


# From end to end


def test_a_study_ends_with_one_measurement_of_every_hospital(folder: StudyFolder, study: Study) -> None:
    _run(folder)
    found = read_measured(folder, study)
    assert found.hospitals == [hospital.name for hospital in study.hospitals]
    assert found.num_examples == 100
    assert found.refusals == []
    assert {kind: len(values) for kind, values in found.sums.items()} == measured_sizes(study.local)
    assert found.uplink_bytes == _logged_bytes(folder, "measure") > 0
    (note,) = _notes(folder, "measured")
    assert note["uplink_bytes"] == found.uplink_bytes
    fisher = read_fisher(folder.fisher, parameter_count(build_student(study.local.spec)))
    assert math.isclose(float(fisher.mean()), 1.0, rel_tol=1e-3)


def test_the_anchors_that_are_kept_are_those_of_the_measurement(folder: StudyFolder, study: Study) -> None:
    _run(folder)
    for index, hospital in enumerate(study.hospitals):
        site = open_hospital(folder.path / "hospitals" / str(index))
        assert site.budget is not None
        last = site.budget.charges(study.name, 2)[-1]
        token = load_checkpoint(folder.checkpoint, study).anchors[hospital.name]
        assert site._account.anchors.opened(token) == (site.budget.ledger.id, last.head)


def test_a_finished_study_asks_nobody_again(folder: StudyFolder, study: Study) -> None:
    _run(folder)
    before = folder.measured.read_bytes()
    assert run_rounds(InProcessGrid(client_app, 0, {}), folder).shape  # no hospital is there any more
    assert folder.measured.read_bytes() == before


def test_a_coordinator_that_died_before_it_kept_the_answers_asks_again_for_the_same(
    folder: StudyFolder, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*args: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(rounds_module, "keep", dies)
        with pytest.raises(Crash):
            _run(folder)
    assert not folder.measured.exists()
    charges = [_charges(folder, index) for index in range(3)]
    monkeypatch.setattr(hospital_module, "measure", lambda *args: pytest.fail("measured again"))
    open_hospital.cache_clear()
    _run(folder)
    assert read_measured(folder, study).refusals == []
    assert [_charges(folder, index) for index in range(3)] == charges


def _charges(folder: StudyFolder, index: int) -> list[str]:
    budget = open_hospital(folder.path / "hospitals" / str(index)).budget
    assert budget is not None
    return [entry.hash for entry in budget.ledger.entries if entry.kind == "charge"]


def test_a_study_without_one_leaves_no_trace_of_it(
    tmp_path: Path,
    make_local: LocalMaker,
    make_study: Callable[..., Study],
    make_federation: Callable[..., StudyFolder],
) -> None:
    folder = make_federation(tmp_path / "plain", make_study(make_local(rounds=1)))
    _run(folder)
    assert not folder.measured.exists()
    assert not folder.fisher.exists()
    assert _notes(folder, "measuring") == []
    assert _logged_bytes(folder, "measure") == 0


# Hostile and silent hospitals


class Altering(InProcessGrid):
    """A grid on which the answers of some nodes are other ones."""

    def __init__(self, folder: StudyFolder, changes: dict[int, Callable[[Message], Message]]) -> None:
        super().__init__(client_app, 3, {"study-folder": str(folder.path)})
        self._changes = changes

    def _run(self, message: Message) -> Message:
        reply = super()._run(message)
        change = self._changes.get(message.metadata.dst_node_id)
        return change(reply) if change and message.metadata.message_type == "query.measure" else reply


def _with_header(**changes: Any) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        config = reply.content.config_records["config"]
        config["reply"] = _canonical({**json.loads(config["reply"]), **changes})  # type: ignore[arg-type]
        return reply

    return change


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _huge(reply: Message) -> Message:
    record = reply.content.array_records["measured"]
    values = np.frombuffer(record["metric"].numpy().tobytes(), "<i8").copy()
    values[0] = 1 << 62
    record["metric"] = type(record["metric"])(np.frombuffer(values.tobytes(), np.uint8))
    return reply


def _without_arrays(reply: Message) -> Message:
    del reply.content["measured"]
    return reply


BAD: dict[str, Callable[[Message], Message]] = {
    "another study": _with_header(study="x"),
    "a round": _with_header(round=1),
    "another hospital": _with_header(hospital="hospital-1"),
    "another count": _with_header(num_examples=31),
    "no number": _with_header(num_examples="30"),
    "more fields": _with_header(loss=0.5),
    "a huge count": _huge,
    "no arrays": _without_arrays,
}


@pytest.mark.parametrize("name", BAD)
def test_an_answer_that_no_honest_hospital_sends_is_left_out_and_named(
    name: str, folder: StudyFolder, study: Study
) -> None:
    run_rounds(Altering(folder, {100: BAD[name]}), folder)
    found = read_measured(folder, study)
    assert found.hospitals == ["hospital-1", "hospital-2"]
    assert found.num_examples == 70
    assert [lost["hospital"] for lost in found.refusals] == ["hospital-0"]
    assert {lost["name"] for lost in found.refusals} <= {"UpdateRefused", "PayloadRefused"}


def test_too_few_answers_end_it_by_name_and_resume_asks_again(folder: StudyFolder, study: Study) -> None:
    wrong = _with_header(study="x")
    with pytest.raises(QuorumMissed, match="hospital-0: UpdateRefused"):
        run_rounds(Altering(folder, {100: wrong, 101: wrong}), folder)
    assert not folder.measured.exists()
    open_hospital.cache_clear()
    _run(folder)
    assert len(read_measured(folder, study).hospitals) == 3


class Losing(InProcessGrid):
    """A grid that loses a node's first answer to a measurement, after the hospital charged and stored it."""

    def __init__(self, folder: StudyFolder, node_id: int) -> None:
        super().__init__(client_app, 3, {"study-folder": str(folder.path)})
        self._losing: int | None = node_id
        self.lifetimes: list[float] = []

    def _run(self, message: Message) -> Message:
        reply = super()._run(message)
        if message.metadata.message_type != MEASURE:
            return reply
        self.lifetimes.append(message.metadata.ttl)
        if message.metadata.dst_node_id != self._losing:
            return reply
        self._losing = None
        return Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE), reply_to=message)


def test_a_hospital_whose_answer_was_lost_is_asked_again_and_charged_once(
    folder: StudyFolder, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is asked anew while the quorum needs it.
    everyone = dataclasses.replace(study, quorum=3)
    monkeypatch.setattr(StudyFolder, "study", lambda self: everyone)
    monkeypatch.setattr(asking, "_LOOK_SECONDS", 0.02)
    grid = Losing(folder, 100)
    run_rounds(grid, folder)
    found = read_measured(folder, everyone)
    assert found.hospitals == [hospital.name for hospital in study.hospitals]
    assert found.refusals == []
    assert len(_charges(folder, 0)) == len(_charges(folder, 1))
    assert len(grid.lifetimes) == 4
    assert max(grid.lifetimes) == study.round_timeout


@pytest.mark.parametrize("kind", [METRIC, FISHER])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_screen_lets_through_what_records_and_noise_can_make_and_no_more(
    kind: str, sign: int, make_local: LocalMaker
) -> None:
    local = make_local(**BOTH)
    measured = {name: np.zeros(size, np.int64) for name, size in measured_sizes(local).items()}
    most = {METRIC: 100 + 13 * 6 * math.sqrt(2), FISHER: (100 + 13 * 7) * 2**20}[kind]
    measured[kind][-1] = sign * int(most)
    screen_measured(local, measured, 100)
    measured[kind][-1] = sign * int(most * 1.1)
    with pytest.raises(UpdateRefused):
        screen_measured(local, measured, 100)


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"study":1}', "\x00"])
def test_answers_that_were_damaged_on_the_disk_are_refused(
    damage: str, folder: StudyFolder, study: Study
) -> None:
    _run(folder)
    folder.measured.write_text(damage)
    with pytest.raises(CheckpointRefused):
        read_measured(folder, study)
    with pytest.raises(CheckpointRefused):
        read_measured(folder, dataclasses.replace(study, name="another"))


# The Fisher


def test_a_channels_weights_share_its_mean(make_local: LocalMaker) -> None:
    local = make_local(fisher_noise_multiplier=1e-6)
    channel = channel_of_weights(local.spec)
    sizes = np.bincount(channel)
    sums = 1000 * np.arange(len(sizes)) * sizes
    fisher = fisher_of_weights(local, sums, 3).astype(np.float64)
    assert math.isclose(float(fisher.mean()), 1.0, rel_tol=1e-5)
    expected = 1000.0 * channel
    assert np.allclose(fisher, expected / expected.mean(), rtol=1e-4)


def test_noise_in_a_channel_is_drawn_to_its_layer_and_never_below_zero(make_local: LocalMaker) -> None:
    local = make_local(fisher_noise_multiplier=4.0)
    channel = channel_of_weights(local.spec)
    sizes, rng = np.bincount(channel), np.random.default_rng(0)
    exact = (sizes * 2.0**20 * rng.uniform(0.5, 1.5, len(sizes))).astype(int)
    noised = exact + np.rint(rng.normal(size=len(sizes)) * 4.0 * 2**20 * math.sqrt(3)).astype(int)
    truth = (exact / sizes)[channel]
    plain = (noised.clip(min=0) / sizes)[channel]
    fisher = fisher_of_weights(local, noised, 3)
    errors = [float(np.abs(found / found.mean() - truth / truth.mean()).mean()) for found in (fisher, plain)]
    assert errors[0] < errors[1]
    assert (fisher >= 0).all()
    assert not fisher_of_weights(local, -np.abs(exact), 3).any()


def _npy(path: Path, values: object) -> Path:
    np.save(path, np.asarray(values), allow_pickle=True)
    return path


@pytest.mark.parametrize(
    "values",
    [
        np.ones(3, np.float32), np.ones(4), np.array([1, 1, 1, -1], np.float32), np.zeros(4, np.float32),
        np.array([1, 1, 1, np.nan], np.float32), np.array([1, 1, 1, np.inf], np.float32),
        np.ones((4, 1), np.float32), np.ones(10**6, np.float32), np.array([{}, {}, {}, {}]),
    ],
)  # fmt: skip
def test_a_file_that_is_no_fisher_of_the_student_is_refused(values: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused):
        read_fisher(_npy(tmp_path / "fisher.npy", values), 4)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY", b"x" * 64])
def test_a_file_that_is_no_array_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "fisher.npy").write_bytes(data)
    with pytest.raises(CheckpointRefused):
        read_fisher(tmp_path / "fisher.npy", 4)
    with pytest.raises(CheckpointRefused):
        read_fisher(tmp_path / "missing.npy", 4)


# The figures


def _drawn(task: str, classes: int, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if task == "multi-label":
        labels = rng.integers(0, 2, (count, classes))
        return (rng.normal(size=(count, classes)) + 2 * labels - 1).astype(np.float32), labels
    labels = rng.integers(0, classes, count)
    return (rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]).astype(np.float32), labels


def _counted(local: LocalSettings, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    cells = cells_of(local)
    return cells.counts(cells.places(logits, labels))


TASKS = [("binary", 2), ("multi-class", 3), ("multi-label", 3)]


@pytest.mark.parametrize(("task", "classes"), TASKS)
def test_without_noise_the_figures_are_those_of_the_records(
    task: str, classes: int, make_local: LocalMaker
) -> None:
    local = make_local(task=task, classes=("a", "b", "c")[:classes], metric_noise_multiplier=1e-6)
    logits, labels = _drawn(task, classes)
    found = private_figures(local, _counted(local, logits, labels), 1)["figures"]
    decisions = decide(logits, task)
    auc = macro_auc(logits, labels, task)
    assert auc is not None
    assert abs((found["auc"] or 0) - auc) < 0.01
    assert math.isclose(found["accuracy"] or 0, accuracy(decisions, labels))
    assert math.isclose(found["balanced_accuracy"] or 0, balanced_accuracy(decisions, labels))


@pytest.mark.parametrize(("task", "classes"), TASKS)
def test_the_standard_errors_are_as_large_as_the_noises_spread(
    task: str, classes: int, make_local: LocalMaker
) -> None:
    """And nearly unbiased: the noise's negative half is kept."""
    local = make_local(task=task, classes=("a", "b", "c")[:classes], metric_noise_multiplier=5.0)
    cells = cells_of(local)
    counts = _counted(local, *_drawn(task, classes))
    rng, exact = np.random.default_rng(1), private_figures(local, counts, 1)["figures"]
    deviation = 5.0 * math.sqrt(cells.a_record) * math.sqrt(2)
    draws = [
        private_figures(local, counts + np.rint(rng.normal(size=len(counts)) * deviation).astype(int), 2)
        for _ in range(200)
    ]
    for name in ("auc", "accuracy", "balanced_accuracy"):
        values = np.array([draw["figures"][name] for draw in draws], np.float64)
        errors = np.array([draw["standard_errors"][name] for draw in draws], np.float64)
        assert (
            abs(float(values.mean()) - (exact[name] or 0)) < 4 * float(values.std()) / math.sqrt(200) + 1e-3
        )
        assert 0.9 * float(values.std()) < float(errors.mean()) < 4 * float(values.std()) + 0.02


def test_a_class_that_drowns_in_the_noise_has_no_figure(make_local: LocalMaker) -> None:
    local = make_local(metric_noise_multiplier=50.0)
    logits, labels = _drawn("binary", 2, 100)
    found = private_figures(local, _counted(local, logits, labels), 1)
    assert found["figures"] == found["standard_errors"]
    assert found["figures"] == {"auc": None, "accuracy": None, "balanced_accuracy": None}


def test_figures_stay_shares_whatever_the_counts(make_local: LocalMaker) -> None:
    local = make_local(metric_noise_multiplier=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(-50, 100, cells_of(local).count)
        found = private_figures(local, counts, 1)
        for value in found["figures"].values():
            assert value is None or 0 <= value <= 1
        for error in found["standard_errors"].values():
            assert error is None or (math.isfinite(error) and error >= 0)
