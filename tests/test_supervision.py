"""What dies is started again, ever more slowly; what is ended is ended by its id, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedward.common import supervision
from fedward.common.supervision import PROCESSES, Program, Supervisor, is_alive, read_processes
from fedward.simulations.deployment import wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]


@contextmanager
def running(folder: Path, *programs: Program, tick: Callable[[], None] = lambda: None) -> Iterator[None]:
    until = threading.Event()
    thread = threading.Thread(target=Supervisor(folder, programs, {"port": 7}).run, args=(until, tick))
    thread.start()
    try:
        yield
    finally:
        until.set()
        thread.join(60)


def _child(folder: Path, name: str) -> dict[str, int]:
    found = wait_for(lambda: (read_processes(folder) or {}).get("children", {}).get(name))
    return dict(found)


def test_a_child_that_is_killed_is_started_again_and_the_others_are_left_alone(tmp_path: Path) -> None:
    with running(tmp_path, Program("a", SLEEP), Program("b", SLEEP)):
        first, other = _child(tmp_path, "a"), _child(tmp_path, "b")
        os.kill(first["pid"], signal.SIGKILL)
        second = wait_for(lambda: (one := _child(tmp_path, "a"))["restarts"] == 1 and one)
        assert second["pid"] != first["pid"]
        assert _child(tmp_path, "b") == other
    assert not is_alive(second["pid"])
    assert not is_alive(other["pid"])
    assert not (tmp_path / PROCESSES).exists()


def test_a_partner_that_would_wait_for_the_dead_is_started_again_too(tmp_path: Path) -> None:
    with running(tmp_path, Program("node", SLEEP), Program("runner", SLEEP, ends=("node",))):
        node = _child(tmp_path, "node")
        os.kill(_child(tmp_path, "runner")["pid"], signal.SIGKILL)
        assert wait_for(lambda: (one := _child(tmp_path, "node"))["restarts"] == 1 and one) != node


def test_a_program_that_always_fails_is_tried_ever_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(supervision, "_TICK_SECONDS", 0.01)
    count = tmp_path / "count"
    failing = [sys.executable, "-S", "-c", f"open({str(count)!r}, 'a').write('x'); raise SystemExit(3)"]
    with running(tmp_path, Program("a", failing)):
        time.sleep(2.0)
    assert 2 <= len(count.read_text()) <= 5


def test_a_child_that_ignores_the_polite_signal_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_END_SECONDS", 0.3)
    with running(tmp_path, Program("a", STUBBORN)):
        pid = _child(tmp_path, "a")["pid"]
        time.sleep(0.5)
    assert not is_alive(pid)


def test_it_says_what_runs_and_what_more_there_is_to_know(tmp_path: Path) -> None:
    with running(tmp_path, Program("a", SLEEP)):
        _child(tmp_path, "a")
        found = read_processes(tmp_path)
        assert found is not None
        assert (found["pid"], found["port"], list(found["children"])) == (os.getpid(), 7, ["a"])
        assert (tmp_path / PROCESSES).stat().st_mode & 0o777 == 0o600


def test_words_of_a_supervisor_that_is_gone_count_for_nothing(tmp_path: Path) -> None:
    (tmp_path / PROCESSES).write_text('{"children":{},"pid":999999999}')
    assert read_processes(tmp_path) is None
    (tmp_path / PROCESSES).write_text("half of a li")
    assert read_processes(tmp_path) is None


def test_an_error_of_the_tick_ends_the_children_and_is_not_swallowed(tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyError("tick")

    supervisor = Supervisor(tmp_path, [Program("a", SLEEP)])
    with pytest.raises(KeyError):
        supervisor.run(threading.Event(), fail)
    assert not (tmp_path / PROCESSES).exists()


def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import threading
from pathlib import Path
from fedward.common.supervision import Program, Supervisor
Supervisor(Path({str(tmp_path)!r}), [Program("a", {SLEEP!r})]).run(threading.Event())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    supervisor = subprocess.Popen([sys.executable, "-c", code], env=environment)
    pid = _child(tmp_path, "a")["pid"]
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not is_alive(pid), 10.0)
