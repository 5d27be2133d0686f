"""The twelve 2D sets of MedMNIST v2, central and federated, beside published test figures.

    python -m fedward.simulations.studies.medmnist [--sets pneumoniamnist,bloodmnist]
        [--modes central,federated] [--precisions fp32,int8,ternary] [--epsilons none,8,3,1]
        [--student cnn,vit] [--seeds 3] [--out FOLDER] [--quick] [--json]

docs/benchmark.md says what the columns are. Every cell is a run of `fedward simulate`: ``federated`` has 8
hospitals of equal shares, ``central`` one that holds all. A set that is not on this machine is downloaded.
One that cannot be had, and a cell that is refused, give a row with the refusal's sentence, which the next run
tries again. The test split is read at a run's end and chooses nothing.
"""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from fedward.common.bundle import model_bytes, read_bundle
from fedward.common.config import LocalSettings
from fedward.common.decision import decide
from fedward.common.errors import DatasetRefused, OutputRefused, Refusal
from fedward.common.losses import prior_offset
from fedward.common.metrics import accuracy
from fedward.common.models import NETWORKS, PRECISIONS
from fedward.common.trust import load_trust
from fedward.server.recipes import FROM_SCRATCH
from fedward.simulations.evaluation import onnx_logits
from fedward.simulations.options import Options
from fedward.simulations.prepare import Simulation, prepare
from fedward.simulations.simulate import Finished, run
from fedward.simulations.sources import find_dataset
from fedward.simulations.studies.medmnist_cells import (
    HOSPITALS,
    QUICK_ROUNDS,
    cell_keys,
    chosen_epsilons,
    chosen_names,
    chosen_sets,
    options_of,
)
from fedward.simulations.studies.medmnist_charts import write_charts
from fedward.simulations.studies.medmnist_table import Table, summarise, targets, write_table
from fedward.simulations.studies.rows import Row, conclude, measured, run_study

_RELEASE = (
    "auc",
    "accuracy",
    "balanced_accuracy",
    "agreement",
    "bytes",
    "fp32_bytes",
    "bundle_bytes",
    "latency_ms",
    "fp32_latency_ms",
    "digest",
)
_OUT = Path("runs/studies/medmnist")


@functools.cache
def absence(name: str) -> str | None:
    """Why a set cannot be had, in a sentence; asked once, since each answer may cost a download."""
    try:
        find_dataset(name)
    except DatasetRefused as refusal:
        return f"not at hand: {refusal}"
    return None


def measure(key: Row) -> Row:
    """One run of the key's cell, or why there is none.

    Raises:
        OutputRefused: the run cannot be written, which no other cell could either.
    """
    if why := absence(key["set"]):
        return {"refusal": why}
    try:
        return _measured(options_of(key))
    except OutputRefused:
        raise
    except Refusal as refusal:
        return {"refusal": f"{refusal.name}: {refusal}"}


def _measured(options: Options) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        simulation = prepare(options, Path(folder) / "run", None)
        finished = run(simulation, Console(stderr=True))
        at_frequencies = accuracy_at_frequencies(simulation, finished)
    metrics = finished.metrics
    dataset, release, used = metrics["dataset"], metrics["release"], metrics["study"]["simulation"]
    return {
        **{name: used[name] for name in ("student", "recipe", "recipe_note")},
        **{name: release[name] for name in _RELEASE},
        "accuracy_at_frequencies": at_frequencies,
        **{name: dataset[name] for name in ("source", "sha256", "task", "counts")},
        "largest_epsilon": max((site["epsilon"] or 0.0 for site in metrics["hospitals"]), default=0.0),
        "uplink_bytes": sum(row["uplink_bytes"] for row in metrics["rounds"]),
        "downlink_bytes": sum(row["downlink_bytes"] for row in metrics["rounds"]),
        "train_seconds": metrics["timing"]["train_seconds"],
    }


def accuracy_at_frequencies(simulation: Simulation, finished: Finished) -> float:
    """Test accuracy of the likeliest class where classes are as frequent as in the public reference records.

    A release decides as if all classes were equally frequent; the published accuracies don't.
    """
    local, test = simulation.folder.study().local, simulation.dataset.test
    logits = onnx_logits(model_bytes(read_bundle(finished.bundle, load_trust())), test.images)
    return accuracy(decide(logits, local.task, _bars(local)), test.labels)


def _bars(local: LocalSettings) -> tuple[float, ...]:
    """Thresholds, as `decide` takes them, that undo logit adjustment."""
    offset = prior_offset(local.class_prior, local.task)
    if offset is None:
        return ()
    prior = offset.numpy().astype(np.float64)
    return (float(prior[0] - prior[1]),) if local.task == "binary" else tuple((-prior).tolist())


def _by_seed(keys: list[Row], seeds: int, out: Path) -> Iterator[list[Row]]:
    """All rows so far, after each seed."""
    say, rows = functools.partial(typer.echo, err=True), list[Row]()
    every = [key | {"seed": seed} for seed in range(seeds) for key in keys]
    for seed in range(seeds):
        wanted = every[seed * len(keys) : (seed + 1) * len(keys)]
        one = functools.partial(_announced, every)
        rows += measured(out, wanted, one, say, is_kept=lambda row: "refusal" not in row)
        yield rows


def _announced(every: list[Row], key: Row) -> Row:
    typer.echo(f"run {every.index(key) + 1} of {len(every)}", err=True)
    return measure(key)


def _written(out: Path, rows: list[Row]) -> tuple[Table, list[str]]:
    table = summarise(rows)
    return table, [str(path) for path in (*write_table(out, table), *write_charts(out, table))]


def main(
    sets: Annotated[str, typer.Option(help="MedMNIST's names with commas between, or all.")] = "all",
    modes: Annotated[str, typer.Option(help="central, federated.")] = "central,federated",
    precisions: Annotated[str, typer.Option(help="fp32, int8, ternary.")] = "fp32,int8,ternary",
    epsilons: Annotated[str, typer.Option(help="Numbers, or none.")] = "none,8,3,1",
    student: Annotated[str, typer.Option(help="Networks, with commas between.")] = "cnn",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    recipe: Annotated[str, typer.Option(help="Of `fedward simulate`.")] = FROM_SCRATCH,
    out: Annotated[Path, typer.Option(help="Where raw rows, tables and charts are kept.")] = _OUT,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    quick: Annotated[
        bool, typer.Option(help=f"{QUICK_ROUNDS} rounds a run: tries, measures nothing.")
    ] = False,
) -> None:
    """Measure, or finish measuring, every set, mode, student, epsilon and seed."""
    networks = chosen_names(student, NETWORKS, "network")
    students = [
        f"{kind}-{net}" for net in networks for kind in chosen_names(precisions, PRECISIONS, "precision")
    ]
    keys = cell_keys(
        chosen_sets(sets),
        chosen_names(modes, tuple(HOSPITALS), "mode"),
        students,
        chosen_epsilons(epsilons),
        recipe,
        quick,
    )
    rows: list[Row] = []
    for rows in _by_seed(keys, seeds, out):
        table, files = _written(out, rows)
    aims = [] if quick else targets(table)
    raise typer.Exit(conclude("medmnist", rows, aims, as_json, summary=table.to_dict(), files=files))


if __name__ == "__main__":
    run_study(main)
