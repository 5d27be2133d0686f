"""What a thousand hospitals cost the aggregator: its peak memory, and the time of a site.

    python -m fedward.simulations.studies.scale --json [--sizes 3 --sizes 1000] [--rounds 2] [--out FOLDER]

Real: the ServerApp with its loop, roster, strategy, screening and checkpoints, in a process of its own; every
hospital's ClientApp with its records, ledgers, DP-SGD and stored replies; every message as Flower's bytes.
Not real: hospitals are small (50 phantoms of 16 x 16 pixels, one local step) and answer one after another in
one process beside; there is no network, no SuperLink with its database, no signing and sealing.

Memory is what Linux counts as the aggregator's resident peak in the study (VmHWM, reset before it), less what
its process held when everything was imported and the study not yet opened. ``OUT/scale.svg`` is the chart.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fedward.client.hospital import create_hospital
from fedward.common.config import EnrolledHospital, Study, declared_count
from fedward.server.progress import read_events
from fedward.server.study_folder import PROGRESS, StudyFolder
from fedward.simulations.aggregator_apart import run_apart
from fedward.simulations.phantoms import make_phantoms
from fedward.simulations.studies.round_overhead import IMAGES, overhead_study
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study
from fedward.simulations.studies.scale_chart import write_chart

SIZES = (3, 10, 30, 100, 300, 1000)
SMALL, LARGE = 10, 1000  # memory at the second over memory at the first
GROWTH_TARGET = 1.2
KILOBYTES_TARGET = 8.0  # its names, ids and anchor; its reply would be 232
_SEED, _BUDGET, _DELTA = 0, 50.0, 1e-5
_OUT = Path("runs/scale")


def scale_study(hospitals: int, rounds: int) -> Study:
    """The study of so many light hospitals, all of which have to answer."""
    enrolled = tuple(EnrolledHospital(f"hospital-{i}", declared_count(IMAGES)) for i in range(hospitals))
    return replace(overhead_study(rounds, f"scale {hospitals}"), hospitals=enrolled, quorum=hospitals)


def make_light_federation(path: Path, study: Study) -> StudyFolder:
    """The study's folder and its hospitals', each with phantoms of its own, one in memory at a time."""
    folder = StudyFolder(path)
    folder.create(study, None)
    for index, hospital in enumerate(study.hospitals):
        records = make_phantoms(size=16, counts=(IMAGES, 2, 2), seed=index).train
        create_hospital(path / "hospitals" / str(index), hospital.name, records, _BUDGET, _DELTA, _SEED)
    return folder


def _measure(key: Row, out: Path) -> Row:
    hospitals, rounds = key["hospitals"], key["rounds"]
    with tempfile.TemporaryDirectory(dir=out) as work:
        started = time.monotonic()
        folder = make_light_federation(Path(work) / "study", scale_study(hospitals, rounds))
        made = time.monotonic() - started
        found = run_apart(folder)
        closed = [event for event in read_events(folder.path / PROGRESS, 0)[0] if event["event"] == "closed"]
    seconds = [event["seconds"] for event in closed]
    return {
        "base_kb": found.base_kb,
        "peak_kb": found.peak_kb,
        "above_base_kb": found.peak_kb - found.base_kb,
        "received_bytes": found.received,
        "made_seconds": round(made, 3),
        "round_seconds": seconds,
        "seconds_a_site": sum(seconds) / rounds / hospitals,
        "aggregator_cpu_seconds_a_site": found.cpu_seconds / rounds / hospitals,
    }


def _targets(rows: list[Row]) -> list[Target]:
    above = {row["key"]["hospitals"]: row["above_base_kb"] for row in rows}
    total = {row["key"]["hospitals"]: row["peak_kb"] for row in rows}
    if not {SMALL, LARGE} <= set(above):
        return []
    what = f"memory at {LARGE:,} hospitals over memory at {SMALL}"
    a_site = (above[LARGE] - above[SMALL]) / (LARGE - SMALL)
    return [
        Target(f"{what}, above the base", above[LARGE] / max(1, above[SMALL]), GROWTH_TARGET, at_least=False),
        Target(f"{what}, of the whole process", total[LARGE] / total[SMALL], GROWTH_TARGET, at_least=False),
        Target("kilobytes that a further hospital adds", a_site, KILOBYTES_TARGET, at_least=False),
    ]


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sizes: Annotated[list[int] | None, typer.Option(help="Numbers of hospitals.", min=1)] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the rows and the chart.")] = _OUT,
) -> None:
    """Measure the aggregator's memory and the time of a site for each number of hospitals."""
    keys: list[Row] = [{"hospitals": size, "rounds": rounds} for size in sizes or SIZES]
    rows = measured(out, keys, lambda key: _measure(key, out), lambda said: print(said, file=sys.stderr))
    chart = write_chart(out / "scale.svg", rows)
    raise typer.Exit(conclude("scale", rows, _targets(rows), as_json, chart=str(chart)))


if __name__ == "__main__":
    run_study(main)
