"""Kill -9 of every process in every phase of a round, and a network that goes away: does the study notice?

    python -m fedward.simulations.studies.chaos --runs 24 --seed 0 --json [--out FOLDER]

Each run is a study of four rounds with three sites over both gateways, from a copy of the same folders, with
one to three kills; in run 5 and 11 the network is cut for 90 s as well, in run 17 for ten minutes. A run's
kills follow from its number and the seed. The undisturbed run is number -1.
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedward.simulations.chaos import CUTS, KINDS, PHASES, run_once, schedule, template_in
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study

_OUT = Path("runs/chaos")
_CALM = -1
_SECONDS = 900.0  # for a run, its cut aside


def _measure(key: Row, out: Path) -> Row:
    template, path = template_in(out, key["seed"]), out / f"r{key['run']}"
    shutil.rmtree(path, ignore_errors=True)
    kills = [] if key["run"] == _CALM else schedule(key["seed"], key["run"])
    row = run_once(template, path, kills, CUTS.get(key["run"], 0.0), _SECONDS)
    shutil.rmtree(path)
    return row


def targets_of(rows: list[Row]) -> list[Target]:
    """All runs against the calm one, the first row."""
    calm, *disturbed = rows
    same = [all(row[part] == calm[part] for part in ("digest", "model")) for row in disturbed]
    paid = [row["epsilon"] == calm["epsilon"] for row in disturbed]
    hit = {(one["side"], one["process"], one["seen"]) for row in disturbed for one in row["hits"]}
    wanted = {(side, process, phase) for side, process in KINDS for phase in PHASES}
    return [
        Target("runs that end in the undisturbed release, share", _share(same), 1.0, at_least=True),
        Target("runs with the undisturbed epsilon at each site, share", _share(paid), 1.0, at_least=True),
        Target("kinds of process times phases of a round hit", len(hit & wanted), len(wanted), at_least=True),
    ]


def _share(held: list[bool]) -> float:
    return sum(held) / max(1, len(held))


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="Disturbed runs.")] = 24,
    seed: Annotated[int, typer.Option(help="Of the kills and of the study's noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the rows and the runs.")] = _OUT,
) -> None:
    """Disturb RUNS studies and compare what they end in."""
    out = out.resolve()
    keys: list[Row] = [{"run": run, "seed": seed} for run in range(_CALM, runs)]
    rows = measured(out, keys, lambda key: _measure(key, out), lambda said: print(said, file=sys.stderr))
    raise typer.Exit(conclude("chaos", rows, targets_of(rows), as_json))


if __name__ == "__main__":
    run_study(main)
