"""Whatever fails in a federation, the release is that of a calm run, or there is a refusal by name."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from fedward.client import hospital as hospital_module
from fedward.client.app import app as client_app
from fedward.client.hospital import Hospital, open_hospital
from fedward.common.cli import run
from fedward.common.codec import encode
from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import ImageDataset, save_npz
from fedward.common.errors import CheckpointRefused, OutputRefused, QuorumMissed, Refusal
from fedward.common.messages import TrainReply
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server.app import app as server_app
from fedward.server.checkpoint import Progress, load_checkpoint
from fedward.server.study_folder import StudyFolder
from fedward.simulations.federation import InProcessGrid, run_in_process

HOSPITALS, ROUNDS = 3, 3
Fault = Callable[[TrainReply], Message | TrainReply | None]
Federation = Callable[..., StudyFolder]


class Crash(BaseException):
    """The process dies here."""


class FaultyGrid(InProcessGrid):
    """One node's replies to training pass through a fault, which may swallow them."""

    def __init__(self, folder: StudyFolder, fault: Fault, nodes: tuple[int, ...]) -> None:
        super().__init__(client_app, HOSPITALS, {STUDY_FOLDER: str(folder.path)})
        self._fault, self._nodes = fault, nodes
        self._swallowed: set[str] = set()

    def pull_messages(self, message_ids: Any) -> Iterator[Message]:
        for reply in super().pull_messages(set(message_ids) - self._swallowed):
            if reply.metadata.message_type == "train" and reply.metadata.src_node_id in self._nodes:
                yield from self._passed(reply)
            else:
                yield reply

    def _passed(self, reply: Message) -> Iterator[Message]:
        changed = self._fault(TrainReply.from_records(reply.content))
        if isinstance(changed, TrainReply):
            reply.content = changed.to_records()
            yield reply
        elif changed is not None:
            changed.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
            yield changed
        else:
            self._swallowed.add(reply.metadata.reply_to_message_id)


def _run(grid: InProcessGrid, folder: StudyFolder) -> None:
    open_hospital.cache_clear()
    config = {STUDY_FOLDER: str(folder.path)}
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config))


def _run_undisturbed(folder: StudyFolder) -> Progress:
    open_hospital.cache_clear()
    run_in_process(folder.path, HOSPITALS)
    return load_checkpoint(folder.checkpoint, folder.study())


def _charged_rounds(folder: Path) -> list[list[int]]:
    """The rounds in each hospital's ledger, as a new process reads it."""
    hospitals = sorted((folder / "hospitals").iterdir())
    ledgers = [Hospital(hospital).budget.ledger.entries for hospital in hospitals]
    return [[entry.body["round"] for entry in ledger if entry.kind == "charge"] for ledger in ledgers]


@pytest.fixture(scope="module")
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(rounds=ROUNDS), quorum=2, averaged_rounds=2, round_timeout=0.2)


@pytest.fixture
def federation(make_federation: Federation, study: Study, tmp_path: Path) -> Callable[[str], StudyFolder]:
    """federation(name) -> a folder of the same study and hospitals, before its first round."""
    return lambda name: make_federation(tmp_path / name, study, with_reference=False)


@pytest.fixture(scope="module")
def undisturbed(
    make_federation: Federation, study: Study, tmp_path_factory: pytest.TempPathFactory
) -> Progress:
    return _run_undisturbed(make_federation(tmp_path_factory.mktemp("all"), study, with_reference=False))


@pytest.fixture(scope="module")
def without_the_first(
    make_federation: Federation, study: Study, tmp_path_factory: pytest.TempPathFactory
) -> Progress:
    """What the other two hospitals give when the first says nothing."""
    folder = make_federation(tmp_path_factory.mktemp("two"), study, with_reference=False)
    _run(FaultyGrid(folder, lambda reply: None, (100,)), folder)
    return load_checkpoint(folder.checkpoint, study)


def _changed(**fields: Any) -> Fault:
    return lambda reply: TrainReply(**{**reply.__dict__, **fields})


def _filled_with(value: float) -> Fault:
    def fill(reply: TrainReply) -> TrainReply:
        (count,) = struct.unpack("<Q", reply.update[8:16].tobytes())
        body = np.full(count, value, "<f4").tobytes()
        update = np.frombuffer(reply.update[:16].tobytes() + body, np.uint8)
        return TrainReply(**{**reply.__dict__, "update": update})

    return fill


def _stale() -> Fault:
    """Sends its first update again and again."""
    first: list[TrainReply] = []

    def send(reply: TrainReply) -> TrainReply:
        first.append(reply)
        return first[0]

    return send


def _error(reply: TrainReply) -> Message:
    return Message(Error(2, "raised"), reply_to=Message(RecordDict(), 100, "train"))


FAULTS: dict[str, tuple[Callable[[], Fault], str]] = {
    "NaN": (lambda: _filled_with(np.nan), "PayloadRefused"),
    "infinity": (lambda: _filled_with(np.inf), "PayloadRefused"),
    "a huge update": (lambda: _filled_with(100.0), "UpdateRefused"),
    "a wrong shape": (lambda: _changed(update=encode(np.zeros(5, np.float32), "fp32")), "PayloadRefused"),
    "another study": (lambda: _changed(study="another"), "UpdateRefused"),
    "another hospital": (lambda: _changed(hospital="hospital-1"), "UpdateRefused"),
    "a larger count": (lambda: _changed(num_examples=10**6), "UpdateRefused"),
    "an error": (lambda: _error, "HospitalFailed"),
    "nothing": (lambda: lambda reply: None, "NoReply"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hospital_that_fails_is_named_in_every_round_and_does_no_harm(
    federation: Callable[[str], StudyFolder], without_the_first: Progress, fault: str
) -> None:
    make, name = FAULTS[fault]
    folder = federation("faulty")
    _run(FaultyGrid(folder, make(), (100,)), folder)
    found = load_checkpoint(folder.checkpoint, folder.study())
    assert found.latents.tobytes() == without_the_first.latents.tobytes()
    assert found.average.tobytes() == without_the_first.average.tobytes()
    for row in found.history:
        assert row["replies"] == 2
        assert [(lost["hospital"], lost["name"]) for lost in row["refusals"]] == [("hospital-0", name)]


def test_an_update_of_another_round_is_refused(federation: Callable[[str], StudyFolder]) -> None:
    folder = federation("stale")
    _run(FaultyGrid(folder, _stale(), (100,)), folder)
    history = load_checkpoint(folder.checkpoint, folder.study()).history
    assert [row["replies"] for row in history] == [3, 2, 2]
    assert "of round 1" in history[1]["refusals"][0]["message"]


def test_no_order_of_the_hospitals_changes_a_bit(
    federation: Callable[[str], StudyFolder], undisturbed: Progress
) -> None:
    class Backwards(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            return list(super().get_node_ids())[::-1]

    folder = federation("backwards")
    _run(Backwards(client_app, HOSPITALS, {STUDY_FOLDER: str(folder.path)}), folder)
    found = load_checkpoint(folder.checkpoint, folder.study())
    assert found.latents.tobytes() == undisturbed.latents.tobytes()
    events = [json.loads(line) for line in (folder.path / "progress.jsonl").read_bytes().splitlines()]
    replied = [event["hospital"] for event in events if event["event"] == "reply"]
    assert replied[:3] == ["hospital-2", "hospital-1", "hospital-0"]


@pytest.mark.parametrize("fault", ["NaN", "an error", "nothing"])
def test_when_all_hospitals_fail_the_study_stops_by_name_and_goes_on_later(
    federation: Callable[[str], StudyFolder], undisturbed: Progress, fault: str
) -> None:
    folder, real = federation("all"), FAULTS[fault][0]()

    def from_the_second_round(reply: TrainReply) -> Message | TrainReply | None:
        return reply if reply.server_round == 1 else real(reply)

    with pytest.raises(QuorumMissed) as caught:
        _run(FaultyGrid(folder, from_the_second_round, (100, 101, 102)), folder)
    for hospital in ("hospital-0", "hospital-1", "hospital-2", FAULTS[fault][1], "Round 2"):
        assert hospital in str(caught.value)
    last = json.loads((folder.path / "progress.jsonl").read_bytes().splitlines()[-1])
    assert (last["event"], last["name"]) == ("refused", "QuorumMissed")
    assert load_checkpoint(folder.checkpoint, folder.study()).server_round == 1
    assert not folder.final.exists()
    assert _run_undisturbed(folder).average.tobytes() == undisturbed.average.tobytes()
    assert _charged_rounds(folder.path) == [[1, 2, 3]] * 3


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _limit_from_call(call: int, size: int) -> Callable[..., Any]:
    real, calls = hospital_module.train, 0

    def train(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return real(*args)

    return train


@pytest.mark.parametrize(("size", "refusal"), [(500_000, OutputRefused), (100_000, QuorumMissed)])
def test_a_disk_that_fills_up_stops_the_study_by_name_and_it_goes_on_later(
    federation: Callable[[str], StudyFolder],
    undisturbed: Progress,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    refusal: type[Refusal],
) -> None:
    """From round 2 on: with 500 kB the coordinator's checkpoint does not fit, with 100 no reply does."""
    folder = federation("full")
    with monkeypatch.context() as patched, _largest_file(resource.RLIM_INFINITY):
        patched.setattr(hospital_module, "train", _limit_from_call(4, size))
        with pytest.raises(refusal):
            _run_undisturbed(folder)
    assert load_checkpoint(folder.checkpoint, folder.study()).server_round == 1
    assert list(folder.path.rglob(".draft-*")) == []
    assert _run_undisturbed(folder).average.tobytes() == undisturbed.average.tobytes()
    assert _charged_rounds(folder.path) == [[1, 2, 3]] * 3


def test_a_damaged_checkpoint_stops_the_study_and_spends_nothing(
    federation: Callable[[str], StudyFolder], undisturbed: Progress
) -> None:
    folder = federation("damaged")
    crash_after_round_one = FaultyGrid(folder, _crash_from(2), (102,))
    with pytest.raises(Crash):
        _run(crash_after_round_one, folder)
    before, good = _charged_rounds(folder.path), folder.checkpoint.read_bytes()
    folder.checkpoint.write_bytes(good[:-1])
    with pytest.raises(CheckpointRefused):
        _run_undisturbed(folder)
    assert _charged_rounds(folder.path) == before
    folder.checkpoint.write_bytes(good)
    assert _run_undisturbed(folder).average.tobytes() == undisturbed.average.tobytes()


def _crash_from(server_round: int) -> Fault:
    def fault(reply: TrainReply) -> TrainReply:
        if reply.server_round >= server_round:
            raise Crash
        return reply

    return fault


def test_hospitals_with_the_systems_keys_go_on_after_a_crash_and_pay_once(
    make_federation: Federation,
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing here can be drawn again, so what was sent before the crash must be what counts after it."""
    study = make_study(make_local(rounds=ROUNDS), seed=None)
    folder = make_federation(tmp_path / "system", study, seed=None, with_reference=False)
    real, calls = hospital_module.train, 0

    def train(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:  # round 2, second hospital: charged, and not trained
            raise Crash
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", train)
        with pytest.raises(Crash):
            _run_undisturbed(folder)
    assert _charged_rounds(folder.path) == [[1, 2], [1, 2], [1]]
    assert len(list(folder.path.glob("hospitals/*/keys/*"))) == 1
    sent = {file: file.read_bytes() for file in folder.path.glob("hospitals/*/replies/*.reply")}
    _run_undisturbed(folder)
    assert _charged_rounds(folder.path) == [[1, 2, 3]] * 3
    assert all(file.read_bytes() == data for file, data in sent.items())
    assert list(folder.path.glob("hospitals/*/keys/*")) == []


# The same from the command line, with real signals

DRIVER = """
import os, signal, sys
import fedward.client.hospital as hospital
from fedward.common.cli import main

real, calls = hospital.train, 0

def train(*args):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))
    return real(*args)

hospital.train = train
main(sys.argv[3:])
"""


def _signalled(call: int, number: signal.Signals, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`fedward ARGUMENTS`, signalled by itself at the call-th training of a hospital, after its charge."""
    command = [sys.executable, "-c", DRIVER, str(call), str(int(number)), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "300"},
    )


def test_kill_and_ctrl_c_in_the_middle_of_rounds_leave_the_same_release_and_no_double_charge(
    tmp_path: Path, phantom: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_npz(tmp_path / "tiny.npz", phantom)
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path / "config"))
    settings = [
        "--dataset",
        str(tmp_path / "tiny.npz"),
        "--hospitals",
        "3",
        "--rounds",
        "4",
        "--epsilon",
        "8",
    ]
    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"

    killed = _signalled(5, signal.SIGKILL, "simulate", *settings, "--out", str(disturbed))
    assert killed.returncode == -signal.SIGKILL
    assert _charged_rounds(disturbed) == [[1, 2], [1, 2], [1]]

    stopped = _signalled(3, signal.SIGINT, "simulate", "--resume", "--out", str(disturbed))
    assert stopped.returncode == 130
    assert f"fedward simulate --resume --out {disturbed}" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert _charged_rounds(disturbed) == [[1, 2, 3], [1, 2], [1, 2]]

    assert run(["simulate", "--resume", "--out", str(disturbed)]) == 0
    assert run(["simulate", *settings, "--out", str(calm)]) == 0
    assert _charged_rounds(disturbed) == _charged_rounds(calm) == [[1, 2, 3, 4]] * 3
    found, expected = (json.loads((out / "metrics.json").read_bytes()) for out in (disturbed, calm))
    assert found["release"]["digest"] == expected["release"]["digest"]
    for part, field in (("hospitals", "epsilon"), ("rounds", "auc")):
        assert [row[field] for row in found[part]] == [row[field] for row in expected[part]]
