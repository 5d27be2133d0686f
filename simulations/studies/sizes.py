"""How large each student is as a release, and what it computes.

    python -m fedward.simulations.studies.sizes --json [--student NAME ...] [--side 28] [--out FOLDER]

Nothing is trained: latents are the student's start moved by Gaussian noise of .05, so that no two norms,
biases or positions are alike. Of their ternary weights 42% are zero; of trained ones it is down to 25%, and
the files are then up to 3% longer (with 26%: 677 kB for ternary-vit-m, 1,990 kB for ternary-vit-l).
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from fedward.common.arithmetic import multiply_adds
from fedward.common.codec import Vector
from fedward.common.compression import compressed
from fedward.common.config import LocalSettings
from fedward.common.models import STUDENTS, StudentSpec, build_student, flatten, initialise
from fedward.common.randomness import KeyedGenerator
from fedward.server.export import to_onnx
from fedward.server.leftovers import rounded
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study

MOST_BYTES = {"ternary-vit-m": 700_000, "ternary-vit-l": 2_000_000}  # at 28 grey pixels
_SIDE, _MOVED = 28, 0.05
_OUT = Path("runs/studies/sizes")


def measure(key: Row) -> Row:
    """Parameters, multiply-adds, bytes of the release's model, and of the same student's fp32 graph."""
    spec = StudentSpec(key["student"], key["channels"], key["side"], key["side"], 2)
    latents, settings = _latents(spec), _settings(spec, spec.name)
    graphs = [
        to_onnx(settings, rounded(settings, latents)),
        to_onnx(_settings(spec, f"fp32-{spec.network}"), latents),
    ]
    size = len(compressed(graphs[0], spec.family))
    return {
        "parameters": len(latents),
        "multiply_adds": multiply_adds(spec),
        "bytes": size,
        "fp32_bytes": len(graphs[1]),
        "ratio": len(graphs[1]) / size,
    }


def _latents(spec: StudentSpec) -> Vector:
    model = build_student(spec)
    initialise(model, KeyedGenerator.from_seed(0, "sizes"))
    start = flatten(list(model.parameters())).numpy()
    moved = start + _MOVED * KeyedGenerator.from_seed(0, "moved").normal(len(start))
    return np.asarray(moved, np.float32)


def _settings(spec: StudentSpec, student: str) -> LocalSettings:
    return LocalSettings(
        student=student,
        channels=spec.channels,
        height=spec.height,
        width=spec.width,
        classes=("no", "yes"),
        task="binary",
        unit="image",
        sample_rate=1.0,
        local_steps=1,
        rounds=1,
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        target_delta=1e-5,
        views=1,
        augmentation="none",
        class_prior=None,
        ewc_lambda=0.0,
        distillation_alpha=0.0,
        distillation_temperature=1.0,
    )


def targets(rows: list[Row]) -> list[Target]:
    """What the two large students' files were to fit in."""
    return [
        Target(f"bytes of {row['key']['student']}", row["bytes"], MOST_BYTES[row["key"]["student"]], False)
        for row in rows
        if row["key"]["student"] in MOST_BYTES and (row["key"]["side"], row["key"]["channels"]) == (_SIDE, 1)
    ]


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    student: Annotated[list[str] | None, typer.Option(help="Students; all where none is named.")] = None,
    side: Annotated[int, typer.Option(help="Pixels a side.")] = _SIDE,
    channels: Annotated[int, typer.Option(help="1 for grey, 3 for colour.")] = 1,
    out: Annotated[Path, typer.Option(help="Where raw rows are kept.")] = _OUT,
) -> None:
    """Export and compress each student."""
    keys: list[Row] = [
        {"student": name, "side": side, "channels": channels} for name in student or list(STUDENTS)
    ]
    rows = measured(out, keys, measure, Console(stderr=True).print)
    raise typer.Exit(conclude("sizes", rows, targets(rows), as_json))


if __name__ == "__main__":
    run_study(main)
