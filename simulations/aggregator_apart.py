"""The aggregator in a process of its own, with its memory counted; its hospitals in another one.

Linux counts a process's resident memory in ``/proc/self/status``: VmRSS now, VmHWM at most since the mark was
last forgotten by a 5 in ``/proc/self/clear_refs``. (`getrusage` would also count what the parent held.)
"""

import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import torch
from flwr.app import Context, RecordDict

from fedward.common.errors import EngineFailed
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server.app import app as server_app
from fedward.server.study_folder import StudyFolder
from fedward.simulations.sites_apart import GridApart, Pipe, serve_sites

_NOW, _PEAK = "VmRSS", "VmHWM"


@dataclass(frozen=True)
class Aggregated:
    """What running one study took of the aggregator's process.

    Attributes:
        base_kb, peak_kb: resident kilobytes before the study, and at most in it.
        cpu_seconds: its own.
        received: bytes of replies.
    """

    base_kb: int
    peak_kb: int
    cpu_seconds: float
    received: int


def run_apart(folder: StudyFolder) -> Aggregated:
    """Run a study in one new process, and its hospitals in another.

    Raises:
        EngineFailed: a process died, or the study did not finish.
    """
    processes = get_context("spawn")
    result, told = processes.Pipe(duplex=False)
    here, there = processes.Pipe()
    hospitals = len(folder.study().hospitals)
    sites = processes.Process(target=serve_sites, args=(there, folder.path, hospitals))
    aggregator = processes.Process(target=_aggregate, args=(here, folder.path, told))
    _start(sites, there)
    _start(aggregator, here, told)
    try:
        return cast(Aggregated, result.recv())
    except EOFError as error:
        raise EngineFailed(
            "The aggregator or its hospitals ended early; what they printed says why."
        ) from error
    finally:
        aggregator.join()
        sites.join()


def _start(process: BaseProcess, *its: Pipe) -> None:
    """Start a process and let go of its ends of the pipes, so that each side sees the other's end."""
    process.start()
    for pipe in its:
        pipe.close()


def _aggregate(pipe: Pipe, folder: Path, told: Pipe) -> None:
    torch.set_num_threads(1)
    grid = GridApart(pipe)
    run_config: dict[str, bool | float | int | str] = {STUDY_FOLDER: str(folder)}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    Path("/proc/self/clear_refs").write_text("5")
    base, started = _resident(_NOW), time.process_time()
    server_app(grid, context)
    told.send(Aggregated(base, _resident(_PEAK), time.process_time() - started, grid.received))


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))
