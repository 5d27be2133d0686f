"""Flower as it is shipped, to measure ours beside it: subprocess isolation, its own FedAvg and polling.

The app does no work: two nodes, a vector of 4 kB, training and evaluation. Its ServerApp notes when each
round begins.
"""

import contextlib
import itertools
import os
import subprocess
import time
from pathlib import Path

from flwr.cli.build import build_fab_from_files

from fedward.common.errors import EngineFailed
from fedward.common.files import make_folder
from fedward.common.flower_tools import LOOPBACK, free_port, quiet_environment, tool
from fedward.common.supervision import end
from fedward.server.control import Control

NODES = 2
_LOOK_SECONDS = 0.5
_START_SECONDS = 60.0
_SECONDS_A_ROUND = 120.0
_PROJECT = b"""[project]
name = "shipped"
version = "1.0.0"
description = "Two nodes that do nothing."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedward"
fab-include = ["/shipped/**/*.py"]

[tool.flwr.app.components]
serverapp = "shipped.server_app:app"
clientapp = "shipped.client_app:app"

[tool.flwr.app.config]
rounds = 1
times = ""
"""
_SERVER = b'''"""FedAvg as it is, and a note of when each round begins."""
import time
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

class Timed(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        with open(self.times, "a") as file:
            print(time.time(), file=file)
        return super().configure_train(server_round, arrays, config, grid)

@app.main()
def main(grid, context):
    strategy = Timed(min_available_nodes=2)
    strategy.times = str(context.run_config["times"])
    strategy.start(grid, ArrayRecord([np.zeros(1000, np.float32)]), num_rounds=context.run_config["rounds"])
    with open(strategy.times, "a") as file:
        print(time.time(), file=file)
'''
_CLIENT = b'''"""Gives back what it got."""
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    records = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(records), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
'''


def shipped_rounds(work: Path, rounds: int) -> list[float]:
    """Seconds of each round of Flower as shipped, from one round's beginning to the next one's.

    Raises:
        EngineFailed: it did not run to its end.
    """
    make_folder(work)
    port, times = free_port(), work.resolve() / "times"
    with contextlib.ExitStack() as running:
        _start(running, work, _superlink(port))
        for _ in range(NODES):
            _start(running, work, _supernode(port))
        control = _once_up(Control(f"{LOOPBACK}:{port}"), {"rounds": rounds, "times": str(times)})
        deadline = time.monotonic() + _START_SECONDS + rounds * _SECONDS_A_ROUND
        while len(begun := _read(times)) <= rounds:
            if time.monotonic() > deadline:
                raise EngineFailed(f"Flower as shipped did not finish run {control}; see {work}.")
            time.sleep(_LOOK_SECONDS)
    return [after - before for before, after in itertools.pairwise(begun)]


def _superlink(port: int) -> list[str]:
    return [
        tool("flower-superlink", "coordinator"), "--insecure", "--host", LOOPBACK, "--port", str(port),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def _supernode(port: int) -> list[str]:
    return [
        tool("flower-supernode", "hospital"), "--insecure", "--superlink", f"{LOOPBACK}:{port}",
        "--host", LOOPBACK, "--port", str(free_port()),
    ]  # fmt: skip


def _start(running: contextlib.ExitStack, work: Path, command: list[str]) -> None:
    log = running.enter_context((work / "flower.log").open("ab"))
    environment = {**os.environ, **quiet_environment(work.resolve() / "flower")}
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    running.callback(end, process, 20)


def _once_up(control: Control, config: dict[str, bool | float | int | str]) -> int:
    files = {
        "pyproject.toml": _PROJECT,
        "shipped/__init__.py": b"",
        "shipped/server_app.py": _SERVER,
        "shipped/client_app.py": _CLIENT,
    }
    content, deadline = build_fab_from_files(files)[0], time.monotonic() + _START_SECONDS
    while True:
        try:
            return control.start_bundle(content, config)
        except EngineFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_SECONDS)


def _read(times: Path) -> list[float]:
    return [float(line) for line in times.read_text().splitlines()] if times.exists() else []
