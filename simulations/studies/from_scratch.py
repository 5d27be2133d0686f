"""PneumoniaMNIST from scratch: eight hospitals, a ternary CNN, each hospital's own DP-SGD.

    python -m fedward.simulations.studies.from_scratch --json [--seeds 3] [--out FOLDER]

The settings are the defaults of `fedward simulate`. They were chosen on the validation split; the test
split is read once a run, at its end.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer
from rich.console import Console

from fedward.simulations.options import Options
from fedward.simulations.prepare import prepare
from fedward.simulations.simulate import run
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study

# name -> (partition, epsilon, target AUC, target accuracy)
CASES: dict[str, tuple[str, float, float, float | None]] = {
    "iid, epsilon 3": ("iid", 3.0, 0.915, 0.845),
    "dirichlet:0.5, epsilon 3": ("dirichlet:0.5", 3.0, 0.91, None),
    "iid, epsilon 1": ("iid", 1.0, 0.90, None),
}


def measure(key: Row) -> Row:
    """One run of the defaults with the key's case and seed."""
    partition, epsilon, _, _ = CASES[key["case"]]
    options = replace(
        Options(), dataset="pneumoniamnist", partition=partition, epsilon=epsilon, seed=key["seed"]
    )
    with tempfile.TemporaryDirectory() as folder:
        metrics = run(prepare(options, Path(folder) / "run", None), Console(stderr=True)).metrics
    spent = [site["epsilon"] for site in metrics["hospitals"]]
    release = metrics["release"]
    wanted = (
        "auc",
        "accuracy",
        "balanced_accuracy",
        "agreement",
        "torch_auc",
        "bytes",
        "fp32_bytes",
        "bundle_bytes",
    )
    return {
        **{name: release[name] for name in wanted},
        "digest": release["digest"],
        "largest_epsilon": max(spent),
        "hospital_aucs": [site["auc"] for site in metrics["hospitals"]],
        "uplink_bytes": sum(row["uplink_bytes"] for row in metrics["rounds"]),
        "downlink_bytes": sum(row["downlink_bytes"] for row in metrics["rounds"]),
        "train_seconds": metrics["timing"]["train_seconds"],
    }


def targets(rows: list[Row]) -> list[Target]:
    """Means over seeds beside their targets, and what holds of every run."""
    found = []
    for case, (_, epsilon, auc, accuracy) in CASES.items():
        own = [row for row in rows if row["key"]["case"] == case]
        found.append(Target(f"{case}: mean AUC", mean(row["auc"] for row in own), auc, True))
        if accuracy is not None:
            found.append(
                Target(f"{case}: mean accuracy", mean(row["accuracy"] for row in own), accuracy, True)
            )
        found.append(Target(f"{case}: epsilon", max(row["largest_epsilon"] for row in own), epsilon, False))
    found.append(
        Target("fp32 over release bytes", min(r["fp32_bytes"] / r["bytes"] for r in rows), 12.0, True)
    )
    found.append(Target("ONNX agrees with torch", min(r["agreement"] for r in rows), 0.995, True))
    found.append(
        Target("AUC, ONNX less torch", max(abs(r["auc"] - r["torch_auc"]) for r in rows), 0.002, False)
    )
    return found


def summary(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds, by case."""
    table = {}
    for case in CASES:
        own = [row for row in rows if row["key"]["case"] == case]
        names = ("auc", "accuracy", "balanced_accuracy", "train_seconds")
        table[case] = {name: mean(row[name] for row in own) for name in names}
        if len(own) > 1:
            table[case] |= {f"{name}_sd": stdev(row[name] for row in own) for name in names}
    return table


def main(
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    out: Annotated[Path, typer.Option(help="Where raw rows are kept.")] = Path("runs/studies/from_scratch"),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure, or finish measuring, every case and seed."""
    codecs = list(Options().codecs)  # rows of an earlier default are none of today's
    keys = [{"case": case, "codecs": codecs, "seed": seed} for seed in range(seeds) for case in CASES]
    rows = measured(out, keys, measure, Console(stderr=True).print)
    raise typer.Exit(conclude("from_scratch", rows, targets(rows), as_json, summary=summary(rows)))


if __name__ == "__main__":
    run_study(main)
