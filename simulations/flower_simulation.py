"""`--engine ray`: the same apps by `flwr run` on Flower's simulation engine.

Flower would start a SuperLink of its own on a fixed port and leave it running for whatever run comes next;
here it is one of ours, on a free loopback port, with its state in the study's folder, and ends with the run.
The bundle that is sent carries no code: the apps are those of the installed package.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fedward.common import errors
from fedward.common.errors import EngineFailed, Refusal
from fedward.common.files import make_folder, write_atomically
from fedward.common.flower_tools import free_port, quiet_environment, tool
from fedward.common.supervision import end
from fedward.common.thin_app import README, project_file
from fedward.server.progress import read_events
from fedward.server.study_folder import StudyFolder
from fedward.simulations.run_folder import FLOWER, PROGRESS

_START_SECONDS = 60.0
_END_SECONDS = 10.0
_CONNECTION = """[superlink]
default = "fedward"

[superlink.fedward]
address = "127.0.0.1:{port}"
insecure = true
"""


def run_on_ray(folder: StudyFolder, hospitals: int) -> None:
    """Run the study of `folder` with one simulated SuperNode a hospital.

    Raises:
        Refusal: as the ServerApp refused.
        EngineFailed: Flower or Ray failed; the study's folder keeps their logs.
    """
    work = folder.path.resolve() / FLOWER
    app = work / "app"
    make_folder(app)
    # JSON's spelling of text is TOML's too; on the command line Flower would take a quote for the end.
    study_folder = json.dumps(str(folder.path.resolve()), ensure_ascii=False)
    write_atomically(app / "pyproject.toml", project_file(study_folder))
    write_atomically(app / "README.md", README)
    watched = folder.path / PROGRESS
    seen = watched.stat().st_size if watched.exists() else 0
    with _superlink(work) as environment:
        command = [
            *_tool("flwr"), "run", str(app), "fedward", "--stream",
            "--federation-config", f"num-supernodes={hospitals} client-resources-num-cpus=1",
        ]  # fmt: skip
        with (work / "run.log").open("ab") as log:
            subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if not folder.final.exists():
        raise _failure(watched, seen, work)


def _tool(name: str) -> list[str]:
    return [tool(name, "simulation")]


@contextlib.contextmanager
def _superlink(work: Path) -> Iterator[dict[str, str]]:
    """A SuperLink on loopback for the length of the block; yields the environment of `flwr` commands."""
    port = free_port()
    home = work / "home"
    make_folder(home)
    write_atomically(home / "config.toml", _CONNECTION.format(port=port).encode())
    environment = {
        **os.environ,
        **quiet_environment(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without a cluster to join, Ray's own servers stay on loopback; the name is history.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    command = [
        *_tool("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with (work / "superlink.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(port, process, work)
            yield environment
        finally:
            sessions = _sessions_of(process.pid)
            end(process, 20)
            for session in sessions:
                _end(session)


def _sessions_of(parent: int) -> list[int]:
    """The sessions that a process started: Flower's workers, Ray among them, which outlive their SuperLink.

    Left alone, they would go on with the study, and with the hospitals' budgets, after Ctrl-C.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            _, starter, group = entry.read_text().rpartition(")")[2].split()[:3]
            if int(starter) == parent and group == entry.parent.name:
                found.append(int(group))
    return found


def _end(session: int) -> None:
    """End every process of a session: politely, and after some seconds not."""
    deadline = time.monotonic() + _END_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.killpg(session, 0)
            time.sleep(0.1)
        os.killpg(session, signal.SIGKILL)


def _wait_until_healthy(port: int, process: "subprocess.Popen[bytes]", work: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with direct.open(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise EngineFailed(f"Flower's SuperLink did not start; see {work / 'superlink.log'}.")


def _failure(watched: Path, seen: int, work: Path) -> Refusal:
    """The refusal that the ServerApp noted, or that the engine itself failed."""
    for event in read_events(watched, seen)[0]:
        if event["event"] == "refused":
            kind = getattr(errors, event["name"], EngineFailed)
            return kind(event["message"])
    return EngineFailed(f"Flower's simulation ended before the study did; see {work / 'run.log'}.")
