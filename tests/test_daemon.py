"""The daemon answers on its owner's socket alone, once a round, and survives whatever it is sent."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from flwr.app import ConfigRecord, Error, RecordDict
from flwr.clientapp import ClientApp

from fedward.client import daemon
from fedward.client.app import app
from fedward.client.daemon_client import ask, is_up
from fedward.client.daemon_service import DaemonService, serve
from fedward.client.frames import ASK, Request, unpack_answer
from fedward.client.state_folder import SOCKET, socket_address
from fedward.common.codec import encode
from fedward.common.config import LocalSettings, Study
from fedward.common.errors import DatasetRefused, OutputRefused
from fedward.common.measure_messages import CODEC, MEASURE, MeasureReply, MeasureRequest
from fedward.common.messages import LATENTS, TrainReply, TrainRequest
from fedward.common.reply_codes import NO_DAEMON, REFUSED
from fedward.server.rounds import initial_latents
from fedward.server.study_folder import StudyFolder


@pytest.fixture(scope="module")
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(), (30,), quorum=1)


@pytest.fixture
def folder(tmp_path: Path, study: Study, make_federation: Callable[..., StudyFolder]) -> Path:
    return make_federation(tmp_path / "s", study).path / "hospitals" / "0"


@pytest.fixture
def up(folder: Path) -> Iterator[Path]:
    server = serve(DaemonService(app, folder), folder)
    yield folder
    server.stop(0).wait()


def _round(study: Study, server_round: int = 1) -> Request:
    vectors = {LATENTS: encode(initial_latents(study), "fp32")}
    request = TrainRequest(study.name, server_round, study.local, 0.5, ("fp32", "fp32"), vectors)
    return Request("train", 60.0, request.to_records())


def _code(answer: RecordDict | Error) -> int:
    assert isinstance(answer, Error)
    return answer.code


def test_a_round_is_answered_and_asked_again_gives_the_same_bytes(up: Path, study: Study) -> None:
    first, again = ask(up, _round(study)), ask(up, _round(study))
    assert isinstance(first, RecordDict)
    assert isinstance(again, RecordDict)
    assert TrainReply.from_records(first).to_bytes() == TrainReply.from_records(again).to_bytes()


def test_a_measurement_is_answered_and_asked_again_gives_the_same_bytes(
    tmp_path: Path,
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
    make_federation: Callable[..., StudyFolder],
) -> None:
    study = make_study(make_local(rounds=1, metric_noise_multiplier=6.0), (30,), quorum=1)
    folder = make_federation(tmp_path / "m", study).path / "hospitals" / "0"
    content = MeasureRequest(study.name, study.local, encode(initial_latents(study), CODEC)).to_records()
    server = serve(DaemonService(app, folder), folder)
    ask(folder, _round(study))
    first, again = (ask(folder, Request(MEASURE, 60.0, content)) for _ in range(2))
    server.stop(0).wait()
    assert isinstance(first, RecordDict)
    assert isinstance(again, RecordDict)
    answers = [MeasureReply.from_records(one, study.local).to_bytes() for one in (first, again)]
    assert answers[0] == answers[1]


def test_the_socket_is_its_owners_alone(up: Path) -> None:
    assert (up / SOCKET).stat().st_mode & 0o777 == 0o600
    assert is_up(up)


def test_it_takes_the_folder_from_the_hospital_never_from_the_message(up: Path, study: Study) -> None:
    request = _round(study)
    request.content["config2"] = ConfigRecord({"state-folder": "/elsewhere", "study-folder": "/elsewhere"})
    assert isinstance(ask(up, request), RecordDict)


def test_what_it_cannot_answer_is_refused_and_it_goes_on(up: Path, study: Study) -> None:
    assert _code(ask(up, Request("train", 9.0, RecordDict()))) == REFUSED
    assert _code(ask(up, Request("nonsense", 9.0, RecordDict()))) != 0
    with grpc.insecure_channel(socket_address(up)) as channel:
        for noise in ([b"noise"], [], [b"\xff" * 100]):
            answer = unpack_answer(channel.stream_stream(ASK)(iter(noise), timeout=9.0))
            assert _code(answer) == REFUSED
    assert isinstance(ask(up, _round(study)), RecordDict)


def test_an_exceptions_words_stay_in_the_hospital(folder: Path) -> None:
    broken = ClientApp()

    @broken.train()
    def fail(message: object, context: object) -> None:
        raise ValueError("Jane Doe")

    server = serve(DaemonService(broken, folder), folder)
    answer = ask(folder, Request("train", 9.0, RecordDict()))
    server.stop(0).wait()
    assert isinstance(answer, Error)
    assert answer.reason == ""


def test_a_runner_waits_for_a_daemon_that_is_just_starting(folder: Path, study: Study) -> None:
    found: list[RecordDict | Error] = []
    waiting = threading.Thread(target=lambda: found.append(ask(folder, _round(study))))
    waiting.start()
    time.sleep(0.5)
    server = serve(DaemonService(app, folder), folder)
    waiting.join(60)
    server.stop(0).wait()
    assert isinstance(found[0], RecordDict)


def test_where_no_daemon_comes_in_time_the_runner_says_so(folder: Path) -> None:
    started = time.monotonic()
    assert _code(ask(folder, Request("train", 0.5, RecordDict()))) == NO_DAEMON
    assert time.monotonic() - started < 5.0
    assert not is_up(folder, 0.2)


def test_a_second_daemon_on_one_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_LOCK_SECONDS", 0.2)
    until = threading.Event()
    first = threading.Thread(target=daemon.run, args=(folder, until))
    first.start()
    while not is_up(folder):
        time.sleep(0.05)
    with pytest.raises(OutputRefused, match="Another daemon runs"):
        daemon.run(folder, threading.Event())
    assert is_up(folder)
    until.set()
    first.join(30)


def test_a_folder_that_is_no_hospitals_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused, match="no hospital"):
        daemon.run(tmp_path, threading.Event())


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    with pytest.raises(OutputRefused, match="too long"):
        socket_address(Path("/") / ("x" * 200))


LIGHT = ("task_runner", "daemon_client", "frames", "site", "state_folder", "supernode", "uplink")


@pytest.mark.parametrize("module", LIGHT)
def test_what_stands_beside_the_daemon_loads_neither_torch_nor_the_data(module: str) -> None:
    """A bundle, or a fault of Flower's, then meets no data in the process that it may reach."""
    forbidden = "{'torch', 'opacus', 'fedward.client.hospital', 'fedward.common.datasets'}"
    code = f"import sys, fedward.client.{module}; sys.exit(bool({forbidden} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
