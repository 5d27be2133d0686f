"""How fast each student answers in each form, beside the same network in fp32: one thread, one image.

    python -m fedward.simulations.studies.latency --json [--student NAME ...] [--repeats 200] [--out FOLDER]

Median milliseconds of this thread's CPU time, all forms of a student and its fp32 network taking turns in one
process, an image each: the others' weights have pushed a model's own out of the nearest cache, which on a
device that holds one model they do not. `fp32` among a row's forms is the release as it is shipped: its codes
are expanded when it is loaded.

A device chooses as `fedward edge tune` does, so a student's figure is that of its fastest form. Nothing is
trained: what a network computes does not depend on it. Whether a form may be used does, and is found out for
each release (`fedward.server.forms`).
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from fedward.common.graph_forms import FORMS, in_form
from fedward.common.models import StudentSpec
from fedward.common.onnx_options import onnx_session
from fedward.server.export import to_onnx
from fedward.server.leftovers import rounded
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study
from fedward.simulations.studies.timing import in_turns
from fedward.simulations.studies.untrained import settings_of, start_latents

STUDENTS = (
    "ternary-vit",
    "ternary-vit-m",
    "ternary-vit-m-mq",
    "ternary-vit-l",
    "ternary-cnn",
    "ternary-depthwise",
)
JUDGED, LEAST_SPEEDUP = ("ternary-vit-m", "ternary-vit-l"), 2.2
RUNS = 3
_PLAIN = "fp32 network"


def measure(key: Row) -> Row:
    """Milliseconds of the fp32 network and of each form that differs from the ones before it."""
    spec = StudentSpec(key["student"], 1, key["side"], key["side"], 2)
    sessions = {name: onnx_session(graph) for name, graph in graphs_of(spec).items()}
    image = np.random.default_rng(0).uniform(-1, 1, (1, 1, key["side"], key["side"])).astype(np.float32)
    milliseconds = in_turns(sessions, image, key["repeats"])
    fastest = min((form for form in milliseconds if form in FORMS), key=milliseconds.__getitem__)
    return {
        "milliseconds": milliseconds,
        "fastest": fastest,
        "speedup": milliseconds[_PLAIN] / milliseconds[fastest],
    }


def graphs_of(spec: StudentSpec) -> dict[str, bytes]:
    """The same latents as an fp32 network, and as a release in each form that is one of its own."""
    latents, settings = start_latents(spec), settings_of(spec, spec.name)
    release = to_onnx(settings, rounded(settings, latents))
    graphs = {_PLAIN: to_onnx(settings_of(spec, f"fp32-{spec.network}"), latents)}
    for form in FORMS:
        if (graph := in_form(release, form)) not in graphs.values():
            graphs[form] = graph
    return graphs


def speedups(rows: Sequence[Row]) -> dict[str, float]:
    """Each student's median over its runs."""
    students = dict.fromkeys(row["key"]["student"] for row in rows)
    return {
        name: median(row["speedup"] for row in rows if row["key"]["student"] == name) for name in students
    }


def targets(rows: Sequence[Row]) -> list[Target]:
    """What the transformers were to gain over fp32."""
    found = speedups(rows)
    return [
        Target(f"times as fast, {name}", found[name], LEAST_SPEEDUP, True) for name in JUDGED if name in found
    ]


def main(
    student: Annotated[list[str] | None, typer.Option(help="Students; several where none is named.")] = None,
    side: Annotated[int, typer.Option(help="Pixels a side.")] = 28,
    repeats: Annotated[int, typer.Option(min=3)] = 200,
    out: Annotated[Path, typer.Option(help="Where raw rows are kept.")] = Path("runs/studies/latency"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time every form of each student."""
    keys = [
        {"student": name, "side": side, "repeats": repeats, "run": run}
        for run in range(RUNS)
        for name in student or STUDENTS
    ]
    rows = measured(out, keys, measure, Console(stderr=True).print)
    raise typer.Exit(conclude("latency", rows, targets(rows), as_json, speedup=speedups(rows)))


if __name__ == "__main__":
    run_study(main)
