"""What a convolutional student loses and gains without 30 and 50% of its channels, and with fewer bits.

    python -m fedward.simulations.studies.pruning --json [--student NAME ...] [--seeds 3] [--out FOLDER]

PneumoniaMNIST as public data: the student is trained on the training split without privacy, in one place,
pruned by what half of the validation split says of its layers, and tuned with what is left; the student that
keeps all of its channels is tuned as long. An int8 student is tuned once more with `OF_BYTES` of the pruned
one's bytes, by 8, 4 or 2 bits for each weight. Nothing is chosen by the test split, which is read once a row.
Latency is of one picture on one thread: medians of thread CPU time, the pruned graph and the whole student's
fp32 graph taking turns, so that another process on the machine slows both or none. At 28 pixels much of it is
spent between operators, whatever their channels; so the same weights are timed at 224 pixels, too.
"""

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
from fedward.common.onnx_options import onnx_session
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import to_onnx
from fedward.server.mixed_precision import model_bytes, with_bits_within
from fedward.server.pruning import pruned, whole_widths
from fedward.server.reference import halve, measure
from fedward.server.teacher import train_plainly
from fedward.simulations.options import Options, plan_study
from fedward.simulations.sources import find_dataset
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study
from fedward.simulations.studies.timing import in_turns

STUDENTS = ("fp32-mobile", "ternary-mobile", "int8-mobile")
SHARES = (0.0, 0.3, 0.5)
OF_BYTES = 0.5  # that an int8 student without the largest share may keep, by fewer bits for some weights
FASTER, MOST_LOST = 2.0, 0.005  # at the largest share
_TURNS, _LARGER = 200, 224
_FIGURES = ("auc", "accuracy", "balanced_accuracy", "val_auc", "speedup", "speedup_224")
_COSTS = ("channels", "parameters", "multiply_adds", "bytes", "latency_ms", "latency_ms_224")


def measure_row(key: Row, base: Path) -> Row:
    """Prune the key's share of the channels, tune, measure; `base` is where trained students are kept."""
    dataset = find_dataset("pneumoniamnist")
    whole = _settings(dataset, key["student"])
    start = _trained(whole, dataset, key, base)
    public = halve(dataset.val).calibration
    settings, latents = pruned(whole, start, public, key["share"])
    if "of_bytes" in key:
        most = int(key["of_bytes"] * model_bytes(settings, latents))
        settings = with_bits_within(settings, latents, public, most)
    generator = KeyedGenerator.from_seed(key["seed"], "tuning")
    latents = train_plainly(settings, dataset.train, key["tuned"], generator, latents)
    own, others = _latencies([(settings, latents), (whole, start)], settings.height)
    larger, others_larger = _latencies([(settings, latents), (whole, start)], _LARGER)
    return {
        **measure(settings, latents, dataset.test),
        "val_auc": measure(settings, latents, halve(dataset.val).evaluation)["auc"],
        "widths": list(whole_widths(settings.spec)),
        "bits": None if settings.bits is None else list(settings.bits),
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
    sessions = {place: onnx_session(graph) for place, graph in zip(("own", "whole"), graphs, strict=True)}
    return list(in_turns(sessions, np.zeros((1, 1, side, side), np.float32), _TURNS).values())


def summary(rows: list[Row]) -> list[Row]:
    """By student, share and bits: means over the seeds, and standard deviations of the figures."""
    table = []
    for case in dict.fromkeys(map(_case, rows)):
        own, names = [row for row in rows if _case(row) == case], (*_FIGURES, *_COSTS)
        found: Row = {name: mean(row[name] for row in own) for name in names}
        found |= {f"{name}_sd": stdev([row[name] for row in own]) for name in _FIGURES if len(own) > 1}
        student, share, of_bytes = case
        table.append({"student": student, "share": share, "of_bytes": of_bytes, "seeds": len(own), **found})
    return table


def _case(row: Row) -> tuple[str, float, float]:
    return row["key"]["student"], row["key"]["share"], row["key"].get("of_bytes", 1.0)


def targets(rows: list[Row]) -> list[Target]:
    """Of each student at the largest share: how much faster, and what it loses to the whole one."""
    means = {(row["student"], row["share"], row["of_bytes"]): row for row in summary(rows)}
    found = []
    for student in dict.fromkeys(row["key"]["student"] for row in rows):
        own, whole = means[student, SHARES[-1], 1.0], means[student, SHARES[0], 1.0]
        name = f"{student} without {SHARES[-1]:.0%}"
        found += [
            Target(f"{name}, times faster", own["speedup"], FASTER, True),
            Target(f"{name}, times faster at {_LARGER} pixels", own["speedup_224"], FASTER, True),
            Target(f"{name}, AUC lost", whole["auc"] - own["auc"], MOST_LOST, False),
        ]
    return found


def _cases(student: str) -> list[Row]:
    shares: list[Row] = [{"share": share} for share in SHARES]
    fewer_bits = {"share": SHARES[-1], "of_bytes": OF_BYTES}
    return [*shares, fewer_bits] if student.startswith("int8-") else shares


def main(
    student: Annotated[list[str] | None, typer.Option(help="Students, in place of the study's own.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 400,
    tuned: Annotated[int, typer.Option(min=1, help="Steps of tuning what was pruned.")] = 400,
    out: Annotated[Path, typer.Option(help="Where raw rows and trained students are kept.")] = Path(
        "runs/studies/pruning"
    ),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Train, prune, tune and measure, or finish doing so."""
    keys: list[Row] = [
        {"student": name, "seed": seed, "steps": steps, "tuned": tuned, **case}
        for seed in range(seeds)
        for name in student or STUDENTS
        for case in _cases(name)
    ]
    rows = measured(out, keys, lambda key: measure_row(key, out), Console(stderr=True).print)
    raise typer.Exit(conclude("pruning", rows, targets(rows), as_json, summary=summary(rows)))


if __name__ == "__main__":
    run_study(main)
