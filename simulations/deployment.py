"""A coordinator and its hospitals as real processes on loopback, to be watched, killed and ended by id."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.common.cli import run
from fedward.common.flower_tools import LOOPBACK, free_port
from fedward.common.supervision import end
from fedward.server.progress import read_events
from fedward.server.study_folder import PROGRESS, StudyFolder

COMMAND = [sys.executable, "-c", "from fedward.common.cli import main; main()"]


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true value of `what`; a test fails where none comes in time."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain")
        time.sleep(0.05)
    return found


@dataclass
class Deployment:
    """State folders of processes that run."""

    coordinator: Path
    hospitals: list[Path]
    study: StudyFolder

    def pid(self, folder: Path, program: str) -> int:
        """The process that `folder` says runs as `program`; "serverapp" is SuperExec's child."""
        if program == "serverapp":
            return int(wait_for(lambda: next(iter(children(self.pid(folder, "superexec"))), None)))

        def found() -> int | None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return int(json.loads((folder / "processes.json").read_bytes())["children"][program]["pid"])
            return None

        return int(wait_for(found))

    def kill(self, folder: Path, program: str) -> None:
        """kill -9, and nothing else."""
        os.kill(self.pid(folder, program), signal.SIGKILL)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The study's events of one name, so far."""
        return [event for event in self.all_events() if event["event"] == name]

    def all_events(self) -> list[dict[str, Any]]:
        """The study's events so far."""
        return read_events(self.study.path / PROGRESS, 0)[0]

    def opened(self, server_round: int) -> Callable[[], bool]:
        """Whether a round was opened."""
        return lambda: any(event["round"] == server_round for event in self.events("round"))

    def order(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`fedward coordinator ...` on this coordinator's folder."""
        command = [*COMMAND, "coordinator", *arguments, "--state", str(self.coordinator)]
        return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)

    def digest(self) -> str:
        """SHA-256 of the study's model."""
        return hashlib.sha256(self.study.final.read_bytes()).hexdigest()


def children(parent: int) -> list[int]:
    """The processes that a process started and that still run."""
    found_children = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found_children.append(int(entry.parent.name))
    return found_children


@contextmanager
def up(commands: Sequence[Sequence[str]], logs: Path) -> Iterator[None]:
    """These commands as processes for the length of the block, each with its log in `logs`; then ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as running:
        for number, command in enumerate(commands):
            log = running.enter_context((logs / f"{command[0]}-{number}.log").open("wb"))
            process = subprocess.Popen(
                [*COMMAND, *command], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            running.callback(end, process, 60)
        yield


def typed(*arguments: object) -> dict[str, Any]:
    """`fedward ...` with --json, run in this process; what it printed.

    Raises:
        AssertionError: it was refused; the sentence is the refusal's.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*map(str, arguments), "--json"])
    if code != 0:
        raise AssertionError(f"fedward {' '.join(map(str, arguments))}: {err.getvalue()}{out.getvalue()}")
    return dict(json.loads(out.getvalue()))


def found(coordinator: Path) -> None:
    """A federation on loopback, by `fedward coordinator init`."""
    ports = ("--port", free_port(), "--superlink-port", free_port(), "--listen", LOOPBACK)
    typed("coordinator", "init", "--name", "office", "--host", "localhost", *ports, "--state", coordinator)


def let_in(coordinator: Path, hospital: Path) -> None:
    """Two files and two telephone calls: the hospital becomes a site."""
    own, theirs = ("--state", hospital), ("--state", coordinator)
    request, answer = hospital / "request.json", hospital / "answer.json"
    asked = typed("hospital", "join", *own, "--out", request)
    read_out = ("--fingerprint", asked["fingerprint"])
    answered = typed("coordinator", "enrol", request, "--out", answer, *read_out, *theirs)
    typed("hospital", "accept", answer, "--fingerprint", answered["fingerprint"], *own)


def renewed(coordinator: Path, hospital: Path, *options: str) -> None:
    """Two files, and no call: the site has a new certificate."""
    request, answer = hospital / "request.json", hospital / "answer.json"
    typed("hospital", "renew", *options, "--state", hospital, "--out", request)
    typed("coordinator", "enrol", request, "--out", answer, "--state", coordinator)
    typed("hospital", "accept", answer, "--state", hospital)


@contextmanager
def deployed(
    study: StudyFolder, path: Path, apart: tuple[int, ...] = (), is_secured: bool = False
) -> Iterator[Deployment]:
    """A coordinator and the study's hospitals, up for the length of the block; those in `apart` stay down.

    `is_secured` makes a federation of them: both gateways, mutual TLS, registered nodes.
    """
    port = free_port()
    folders = sorted((study.path / "hospitals").iterdir())
    coordinator = path / "c"
    if is_secured and not coordinator.exists():
        found(coordinator)
        for folder in folders:
            let_in(coordinator, folder)
    trial = () if is_secured else ("--trial-port", str(port))
    uplink = () if is_secured else ("--superlink", f"{LOOPBACK}:{port}")
    commands = [["coordinator", "up", "--state", str(coordinator), *trial]]
    for number, folder in enumerate(folders):
        if number not in apart:
            commands.append(["hospital", "up", "--state", str(folder), *uplink])
    with up(commands, path):
        yield Deployment(coordinator, folders, study)
