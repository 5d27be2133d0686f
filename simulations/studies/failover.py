"""A standby coordinator takes over: seconds from its start to the next message that it accepts.

    python -m fedward.simulations.studies.failover --json [--runs 5] [--out FOLDER]

The state folder is copied while the coordinator works; later every process of the coordinator is killed, its
folder is taken away as a lost machine's would be, and `fedward coordinator up` runs on the copy, which is by
then some seconds old. Hospitals are not touched. The study must end in the undisturbed release.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fedward.simulations.chaos import OFFICE, Federation, run_once, template_in, until
from fedward.simulations.deployment import children
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study

_OUT = Path("runs/failover")
_CALM = -1
SECONDS_TARGET = 30.0
_SECONDS = 600.0
_SEED = 0  # of the study's noise


def _measure(key: Row, out: Path) -> Row:
    template, path = template_in(out, _SEED), out / f"r{key['run']}"
    shutil.rmtree(path, ignore_errors=True)
    row = run_once(template, path, [], 0.0, _SECONDS) if key["run"] == _CALM else _taken_over(template, path)
    shutil.rmtree(path)
    return row


def _taken_over(template: Path, path: Path) -> Row:
    shutil.copytree(template, path)
    # What a standby copies: keys, sites, orders, and the study.
    (path / "s").rename(path / "c" / "s")
    for number, folder in enumerate(sorted((path / "c" / "s" / "hospitals").iterdir())):
        folder.rename(path / f"h{number}")
    deadline = time.monotonic() + _SECONDS
    with Federation.of(path, path / "c" / "s", sorted(path.glob("h[0-9]"))) as federation:
        federation.begin()
        until(lambda: federation.phase(2) == "answered", deadline, path)
        shutil.copytree(path / "c", path / "copy", copy_function=_copied)
        until(lambda: federation.phase(3) == "working", deadline, path)
        _lose(federation)
        (path / "c").rename(path / "lost")
        (path / "copy").rename(path / "c")
        before, started = len(federation.events("reply")), time.monotonic()
        federation.start(OFFICE, 0)
        until(lambda: len(federation.events("reply")) > before, deadline, path)
        seconds = time.monotonic() - started
        until(federation.is_finished, deadline, path)
        found = federation.outcome()
    return {"seconds": round(seconds, 2), **found}


def _copied(source: str, target: str) -> str:
    """As rsync copies a folder that is in use: a socket or a file that has gone is left out."""
    if Path(source).is_file():
        shutil.copy2(source, target)
    return target


def _lose(federation: Federation) -> None:
    """Power off: all of the coordinator's processes at once."""
    names = ("superlink", "superexec", "gateway")
    pids = [federation.pid(federation.coordinator, name) for name in ("serverapp", *names)]
    pids += [child for pid in pids for child in children(pid)]  # nginx' workers outlive it
    federation.kill_supervisor()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def targets_of(rows: list[Row]) -> list[Target]:
    """Every run within the time, and all in the first row's release."""
    calm, *lost = rows
    same = [row["digest"] == calm["digest"] and row["epsilon"] == calm["epsilon"] for row in lost]
    slowest = max(row["seconds"] for row in lost)
    return [
        Target("seconds to the next accepted message, slowest", slowest, SECONDS_TARGET, at_least=False),
        Target("runs in the undisturbed release and epsilon, share", sum(same) / len(same), 1.0, True),
    ]


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="Lost coordinators.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the rows and the runs.")] = _OUT,
) -> None:
    """Lose RUNS coordinators and take over."""
    out = out.resolve()
    keys: list[Row] = [{"run": run} for run in range(_CALM, runs)]
    rows = measured(out, keys, lambda key: _measure(key, out), lambda said: print(said, file=sys.stderr))
    raise typer.Exit(conclude("failover", rows, targets_of(rows), as_json))


if __name__ == "__main__":
    run_study(main)
