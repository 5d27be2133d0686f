"""Two engines, one result: the in-process Grid keeps Flower's contract, and Ray gives the same release."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedward.common.cli import run
from fedward.common.datasets import ImageDataset, save_npz
from fedward.simulations import flower_simulation
from fedward.simulations.federation import InProcessGrid

SERVER, NODES = 1, (100, 101, 102)
SECRET = "Jane Doe"


@pytest.fixture
def asked() -> list[int]:
    """The nodes that ran, in order."""
    return []


@pytest.fixture
def grid(asked: list[int]) -> InProcessGrid:
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        count = context.state.config_records.get("seen", ConfigRecord({"count": 0}))["count"]
        context.state.config_records["seen"] = ConfigRecord({"count": count + 1})
        values = {"partition": context.node_config["partition-id"], "setting": context.run_config["setting"]}
        return Message(RecordDict({"said": ConfigRecord({**values, "count": count + 1})}), reply_to=message)

    @app.train()
    def fail(message: Message, context: Context) -> Message:
        raise ValueError(SECRET)

    @app.evaluate()
    def interrupt(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    return InProcessGrid(app, 3, {"setting": "here"})


def _questions(*node_ids: int, kind: str = MessageType.QUERY) -> list[Message]:
    return [Message(RecordDict(), node_id, kind) for node_id in node_ids]


def _sources(replies: Iterable[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def test_it_is_a_flower_grid_with_a_node_a_hospital(grid: InProcessGrid) -> None:
    assert isinstance(grid, Grid)
    assert list(grid.get_node_ids()) == list(NODES)
    assert [node.node_id for node in grid.get_nodes()] == list(NODES)
    assert grid.run.run_id == 1


def test_a_node_runs_when_its_reply_is_pulled_and_not_before(grid: InProcessGrid, asked: list[int]) -> None:
    """So one update at a time is in memory."""
    ids = list(grid.push_messages(_questions(*NODES)))
    assert asked == []
    replies = iter(grid.pull_messages(ids))
    for expected in ([100], [100, 101], [100, 101, 102]):
        next(replies)
        assert asked == expected


def test_a_reply_answers_its_message(grid: InProcessGrid) -> None:
    ids = list(grid.push_messages(_questions(*NODES)))
    assert len(set(ids)) == 3
    for number in (1, 2, 0):
        (reply,) = grid.pull_messages([ids[number]])
        assert reply.metadata.reply_to_message_id == ids[number]
        assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (NODES[number], SERVER)
        assert reply.content.config_records["said"]["partition"] == number
        assert reply.content.config_records["said"]["setting"] == "here"


def test_a_node_keeps_its_own_state_from_message_to_message(grid: InProcessGrid) -> None:
    replies = grid.send_and_receive([*_questions(100, 100), *_questions(101)])
    assert [reply.content.config_records["said"]["count"] for reply in replies] == [1, 2, 1]


def test_a_message_to_an_unknown_node_gets_no_id(grid: InProcessGrid) -> None:
    first, second, third = grid.push_messages(_questions(100, 999, 101))
    assert second == ""
    assert _sources(grid.pull_messages([first, third])) == [100, 101]


@pytest.mark.parametrize("message_id", ["", "m999", "nonsense"])
def test_an_unknown_id_is_an_error_of_the_superlinks_and_no_exception(
    grid: InProcessGrid, message_id: str
) -> None:
    (reply,) = grid.pull_messages([message_id])
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert reply.metadata.src_node_id == SERVER
    assert reply.metadata.reply_to_message_id == message_id


def test_a_reply_that_was_pulled_is_not_there_again(grid: InProcessGrid, asked: list[int]) -> None:
    (message_id,) = grid.push_messages(_questions(100))
    list(grid.pull_messages([message_id]))
    (again,) = grid.pull_messages([message_id])
    assert again.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert asked == [100]


def test_an_app_that_raises_is_an_error_of_its_node_and_says_nothing_of_the_exception(
    grid: InProcessGrid,
) -> None:
    (reply,) = grid.send_and_receive(_questions(101, kind=MessageType.TRAIN))
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.metadata.src_node_id == 101
    assert SECRET not in repr(reply.__dict__)


def test_a_message_that_no_handler_takes_is_an_error_of_its_node(grid: InProcessGrid) -> None:
    (reply,) = grid.send_and_receive(_questions(101, kind="query.unknown"))
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def test_ctrl_c_reaches_the_coordinator(grid: InProcessGrid) -> None:
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(_questions(101, kind=MessageType.EVALUATE))


def _processes_with(mark: str) -> list[str]:
    """Command lines of the living processes in whose environment `mark` stands."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is another user's
            continue
    return found


def _left_over(mark: str, seconds: float = 15.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while (found := _processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


FAKE_SUPERLINK = """
import http.server, subprocess, sys

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

worker = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", worker], start_new_session=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


def test_ctrl_c_on_ray_leaves_no_worker_that_goes_on_with_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower starts its workers in a session of their own: Ctrl-C does not reach them, nor does the end of
    their SuperLink.
    """
    monkeypatch.setattr(flower_simulation, "_tool", lambda name: [sys.executable, "-c", FAKE_SUPERLINK])
    monkeypatch.setattr(flower_simulation, "_END_SECONDS", 0.5)
    mark = str(uuid.uuid4())
    monkeypatch.setenv("FEDWARD_TEST_MARK", mark)
    with suppress(KeyboardInterrupt), flower_simulation._superlink(tmp_path):
        assert len(_processes_with(mark)) == 2
        raise KeyboardInterrupt
    assert _left_over(mark, 2.0) == []


def _digest(out: Path) -> str:
    return str(json.loads((out / "metrics.json").read_bytes())["release"]["digest"])


def test_ray_gives_the_release_that_this_process_gives_and_leaves_no_process(
    tmp_path: Path, phantom: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_npz(tmp_path / "tiny.npz", phantom)
    monkeypatch.setenv("FEDWARD_CONFIG", str(tmp_path / "config"))

    def command(engine: str) -> list[str]:
        settings = ["--dataset", str(tmp_path / "tiny.npz"), "--hospitals", "2", "--rounds", "2"]
        return ["simulate", *settings, "--epsilon", "8", "--engine", engine, "--out", str(tmp_path / engine)]

    mark = str(uuid.uuid4())
    finished = subprocess.run(
        [str(Path(sys.executable).with_name("fedward")), *command("ray")],
        env={**os.environ, "FEDWARD_TEST_MARK": mark},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    assert _left_over(mark) == []
    assert run(command("inproc")) == 0
    assert _digest(tmp_path / "ray") == _digest(tmp_path / "inproc")
