"""Child processes that are kept running: started, watched, restarted with a growing pause, ended by id.

What a supervisor runs it names in ``processes.json``, for whoever asks after it. Children have a session of
their own, so that Ctrl-C reaches the supervisor alone, and are told to end when it dies.
"""

import ctypes
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedward.common.files import canonical_json, make_folder, parse_canonical, write_atomically

PROCESSES, LOGS = "processes.json", "logs"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before a restart
_STEADY_SECONDS = 60.0  # after so long, a restart begins with the first pause again
_TICK_SECONDS = 0.2
_END_SECONDS, _RESTART_SECONDS = 15.0, 3.0  # for a child to end politely, for good or to be restarted
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_LIBC = ctypes.CDLL(None)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """A child process to keep running.

    Attributes:
        name: of the process and of its log.
        command: as it is executed.
        environment: added to this process's own.
        ends: names of programs that are ended, and so restarted, when this one dies: they would wait for
            what it had in hand.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[str, ...] = ()


@dataclass
class _Child:
    program: Program
    pause: float
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    restarts: int = -1
    due: float = 0.0

    def start(self, log: Path) -> None:
        self.restarts += 1
        self.started = time.monotonic()
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                list(self.program.command),
                env={**os.environ, **self.program.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    @property
    def has_died(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def bury(self) -> None:
        if time.monotonic() - self.started > _STEADY_SECONDS:
            self.pause = _FIRST_PAUSE
        self.due = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)
        self.process = None


def until_signalled() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set, so that everything is ended in order."""
    until = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: until.set())
    return until


def read_processes(folder: Path) -> dict[str, Any] | None:
    """What a supervisor said last of `folder`; None where it said nothing, or is gone."""
    try:
        found = parse_canonical((folder / PROCESSES).read_bytes())
        os.kill(found["pid"], 0)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return dict(found)


def is_alive(pid: int) -> bool:
    """Whether a process of that id runs."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def end_with_parent() -> None:
    """To be run in a child: it is told to end when its parent dies."""
    _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


class Supervisor:
    """Keeps programs running until it is told to stop.

    Args:
        folder: where ``processes.json`` and ``logs/`` stand.
        programs: started in this order and ended in the other.
        about: further entries of ``processes.json``, for example ports.
    """

    def __init__(
        self, folder: Path, programs: Sequence[Program], about: Mapping[str, Any] | None = None
    ) -> None:
        """Prepare; nothing is started yet."""
        self._folder = folder
        self._about = dict(about or {})
        self._children = {program.name: _Child(program, _FIRST_PAUSE) for program in programs}

    def run(self, until: threading.Event, tick: Callable[[], None] = lambda: None) -> None:
        """Start all, restart what dies, call `tick` several times a second; on the event end all.

        Raises:
            OutputRefused: the folder cannot be written.
        """
        make_folder(self._folder / LOGS, 0o700)
        try:
            while not until.is_set():
                if self._revive():
                    self._note()
                tick()
                until.wait(_TICK_SECONDS)
        finally:
            self._end(list(reversed(self._children.values())), _END_SECONDS)
            (self._folder / PROCESSES).unlink(missing_ok=True)

    def restart(self, name: str) -> None:
        """End a program, politely; the next look starts it again. To be called from `tick`."""
        self._end([self._children[name]], _RESTART_SECONDS)

    def _revive(self) -> bool:
        changed = False
        for child in self._children.values():
            if child.process is not None and child.has_died:
                _log.warning(
                    "a process ended",
                    extra={"fields": {"process": child.program.name, "code": child.process.returncode}},
                )
                child.bury()
                self._end([self._children[name] for name in child.program.ends], _RESTART_SECONDS)
                changed = True
            if child.process is None and time.monotonic() >= child.due:
                child.start(self._folder / LOGS / f"{child.program.name}.log")
                changed = True
        return changed

    def _note(self) -> None:
        children = {
            name: {"pid": child.process.pid, "restarts": child.restarts}
            for name, child in self._children.items()
            if child.process is not None
        }
        entry = {"schema": 1, "pid": os.getpid(), "children": children, **self._about}
        write_atomically(self._folder / PROCESSES, canonical_json(entry), 0o600)

    def _end(self, children: list[_Child], seconds: float) -> None:
        """Politely, and after some seconds not; a child that ended is started anew by the next look."""
        running = [child.process for child in children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + seconds
        for process in running:
            _wait_or_kill(process, max(0.1, deadline - time.monotonic()))


def end(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """End a child politely, and after `seconds` not."""
    process.terminate()
    _wait_or_kill(process, seconds)


def _wait_or_kill(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
