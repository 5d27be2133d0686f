"""A coordinator and its hospitals as real processes on loopback, to be watched, killed and ended by id."""

import contextlib
import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedward.common.certificates import loopback_identity, new_key
from fedward.common.errors import EngineFailed
from fedward.common.flower_tools import LOOPBACK, free_port
from fedward.common.instants import utc_now
from fedward.common.supervision import end
from fedward.server.control import Control
from fedward.server.study_folder import StudyFolder

_HOUR = datetime.timedelta(hours=1)
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
    address: str

    def pid(self, folder: Path, program: str) -> int:
        """The process that `folder` says runs as `program`; "serverapp" is SuperExec's child."""
        if program == "serverapp":
            return int(wait_for(lambda: _serverapp_of(self.pid(folder, "superexec"))))

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
        path = self.study.path / "progress.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

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


def _serverapp_of(superexec: int) -> int | None:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == superexec:
                return int(entry.parent.name)
    return None


@contextmanager
def deployed(
    study: StudyFolder, path: Path, apart: tuple[int, ...] = (), is_secured: bool = False
) -> Iterator[Deployment]:
    """A coordinator and the study's hospitals, up for the length of the block; those in `apart` stay down.

    `is_secured` gives SuperLink a certificate and each hospital's node a registered key.
    """
    port = free_port()
    folders = sorted((study.path / "hospitals").iterdir())
    coordinator = path / "c"
    keys = [path / f"node-{number}" for number in range(len(folders))]
    certificate, private = path / "certificate.pem", path / "key.pem"
    commands = [["coordinator", "up", "--state", str(coordinator), "--port", str(port)]]
    if is_secured:
        loopback_identity(utc_now(), _HOUR).save(private, certificate)
        commands[0] += [f"--certificate={certificate}", f"--key={private}", f"--authority={certificate}"]
    for number, folder in enumerate(folders):
        if number not in apart:
            commands.append(["hospital", "up", "--state", str(folder), "--superlink", f"{LOOPBACK}:{port}"])
            if is_secured:
                commands[-1] += [f"--root-certificates={certificate}", f"--node-key={keys[number]}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as running:
        for number, command in enumerate(commands):
            log = running.enter_context((path / f"up-{number}.log").open("wb"))
            process = subprocess.Popen(
                [*COMMAND, *command], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
            running.callback(end, process, 60)
            if number == 0 and is_secured:
                _register(Control(f"{LOOPBACK}:{port}", certificate), keys)
        yield Deployment(coordinator, folders, study, f"{LOOPBACK}:{port}")


def _register(control: Control, keys: list[Path]) -> None:
    """Make each node's key and tell SuperLink of it, once it is up."""
    for path in keys:
        key = new_key()
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public = public_key_to_bytes(key.public_key())
        wait_for(lambda public=public: _is_known(control, public))  # type: ignore[misc]


def _is_known(control: Control, public_key: bytes) -> bool:
    try:
        control.register(public_key)
    except EngineFailed:
        return False
    return True
