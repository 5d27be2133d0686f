"""What a convolutional student loses and gains without 30 and 50% of its channels.

    python -m fedward.simulations.studies.pruning --json [--student NAME ...] [--seeds 3] [--out FOLDER]

PneumoniaMNIST as public data: the student is trained on the training split without privacy, in one place,
pruned by what half of the validation split says of its layers, and tuned with what is left; the student that
keeps all of its channels is tuned as long. Nothing is chosen by the test split, which is read once a row.
Latency is of one picture on one thread: medians of thread CPU time, the pruned graph and the whole student's
fp32 graph taking turns, so that another process on the machine slows both or none. At 28 pixels much of it is
spent between operators, whatever their channels; so the same weights are timed at 224 pixels, too.
"""

import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from fedward.common.arithmetic import multiply_adds
from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset
from fedward.common.files import write_atomically
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import INPUT, to_onnx
from fedward.server.mixed_precision import model_bytes
from fedward.server.pruning import pruned, whole_widths
from fedward.server.reference import halve, measure
from fedward.server.release import onnx_session
from fedward.server.teacher import train_plainly
from fedward.simulations.options import Options, plan_study
from fedward.simulations.sources import find_dataset
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study

STUDENTS = ("fp32-mobile", "ternary-mobile")
SHARES = (0.0, 0.3, 0.5)
FASTER, MOST_LOST = 2.0, 0.005  # at the largest share
_TURNS, _LARGER = 200, 224
_FIGURES = ("auc", "accuracy", "balanced_accuracy", "val_auc", "speedup", "speedup_224")
_COSTS = ("channels", "parameters", "multiply_adds", "bytes", "latency_ms", "latency_ms_224")


def measure_row(key: Row, base: Path) -> Row:
    """Prune the key's share of the channels, tune, measure; `base` is where trained students are kept."""
    dataset = find_dataset("pneumoniamnist")
    whole = _settings(dataset, key["student"])
    start = _trained(whole, dataset, key, base)
    settings, latents = pruned(whole, start, halve(dataset.val).calibration, key["share"])
    generator = KeyedGenerator.from_seed(key["seed"], "tuning")
    latents = train_plainly(settings, dataset.train, key["tuned"], generator, latents)
    own, others = _latencies([(settings, latents), (whole, start)], settings.height)
    larger, others_larger = _latencies([(settings, latents), (whole, start)], _LARGER)
    return {
        **measure(settings, latents, dataset.test),
        "val_auc": measure(settings, latents, halve(dataset.val).evaluation)["auc"],
        "widths": list(whole_widths(settings.spec)),
        "channels": sum(whole_widths(settings.spec)) / sum(whole_widths(whole.spec)),
        "parameters": len(latents),
        "multiply_adds": multiply_adds(settings.spec),
        "bytes": model_bytes(settings, latents),
        "latency_ms": own,
        "speedup": others / own,
        "latency_ms_224": larger,
        "speedup_224": others_larger / larger,
    }


def _settings(dataset: ImageDataset, student: str) -> LocalSettings:
    options = Options(dataset="pneumoniamnist", student=student, hospitals=1, epsilon=None)
    return plan_study(options, dataset, [dataset.train], dataset.val, None).local


def _trained(settings: LocalSettings, dataset: ImageDataset, key: Row, base: Path) -> Vector:
    """The whole student, trained once for all shares: kept beside the rows."""
    path = base / f"{key['student']}-{key['seed']}-{key['steps']}.npy"
    if not path.exists():
        generator = KeyedGenerator.from_seed(key["seed"], "training")
        latents = train_plainly(settings, dataset.train, key["steps"], generator)
        write_atomically(path, latents.tobytes())
    return np.frombuffer(path.read_bytes(), np.float32).copy()


def _latencies(students: list[tuple[LocalSettings, Vector]], side: int) -> list[float]:
    """Median milliseconds of thread CPU time for one image: of the first student's graph, and of the second's
    in fp32, taking turns."""
    (own, latents), (whole, start) = students
    plain = replace(whole, student=f"fp32-{whole.spec.network}")
    pairs = (own, latents), (plain, start)
    graphs = [to_onnx(replace(one, height=side, width=side), values) for one, values in pairs]
    sessions, image = [onnx_session(graph) for graph in graphs], np.zeros((1, 1, side, side), np.float32)
    times: list[list[int]] = [[] for _ in sessions]
    for _ in range(_TURNS):
        for session, spent in zip(sessions, times, strict=True):
            started = time.thread_time_ns()
            session.run(None, {INPUT: image})
            spent.append(time.thread_time_ns() - started)
    return [float(np.median(spent)) / 1e6 for spent in times]


def summary(rows: list[Row]) -> list[Row]:
    """By student and share: means over the seeds, and standard deviations of the figures."""
    table = []
    for student, share in sorted({(row["key"]["student"], row["key"]["share"]) for row in rows}):
        own = [r for r in rows if (r["key"]["student"], r["key"]["share"]) == (student, share)]
        names = (*_FIGURES, *_COSTS)
        found: Row = {name: mean(row[name] for row in own) for name in names}
        found |= {f"{name}_sd": stdev([row[name] for row in own]) for name in _FIGURES if len(own) > 1}
        table.append({"student": student, "share": share, "seeds": len(own), **found})
    return table


def targets(rows: list[Row]) -> list[Target]:
    """Of each student at the largest share: how much faster, and what it loses to the whole one."""
    means = {(row["student"], row["share"]): row for row in summary(rows)}
    found = []
    for student in dict.fromkeys(row["key"]["student"] for row in rows):
        own, whole = means[student, SHARES[-1]], means[student, SHARES[0]]
        name = f"{student} without {SHARES[-1]:.0%}"
        found += [
            Target(f"{name}, times faster", own["speedup"], FASTER, True),
            Target(f"{name}, times faster at {_LARGER} pixels", own["speedup_224"], FASTER, True),
            Target(f"{name}, AUC lost", whole["auc"] - own["auc"], MOST_LOST, False),
        ]
    return found


def main(
    student: Annotated[list[str] | None, typer.Option(help="Students, in place of the study's own.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 240,
    tuned: Annotated[int, typer.Option(min=1, help="Steps of tuning what was pruned.")] = 120,
    out: Annotated[Path, typer.Option(help="Where raw rows and trained students are kept.")] = Path(
        "runs/studies/pruning"
    ),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Train, prune, tune and measure, or finish doing so."""
    keys = [
        {"student": name, "share": share, "seed": seed, "steps": steps, "tuned": tuned}
        for seed in range(seeds)
        for name in student or STUDENTS
        for share in SHARES
    ]
    rows = measured(out, keys, lambda key: measure_row(key, out), Console(stderr=True).print)
    raise typer.Exit(conclude("pruning", rows, targets(rows), as_json, summary=summary(rows)))


if __name__ == "__main__":
    run_study(main)
