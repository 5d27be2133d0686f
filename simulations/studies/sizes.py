"""How large each student is as a release, what it computes, and what the next release takes as a patch.

    python -m fedward.simulations.studies.sizes --json [--student NAME ...] [--side 28] [--out FOLDER]

For the table of students nothing is trained: latents are the student's start moved by Gaussian noise of .05,
so that no two norms, biases or positions are alike. Of their ternary weights 42% are zero; of trained ones it
is down to 25%, and the files are then up to 3% longer.

Patches are whole ones, between two signed bundles (`fedward.simulations.studies.release_pairs`): of releases
whose ternary weights differ by 2, 3 and 4%, as from one round to the next, and of two that were trained, the
second continuing the first. They are measured below the fp32 model.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedward.common.arithmetic import multiply_adds
from fedward.common.compression import compressed
from fedward.common.models import STUDENTS, StudentSpec
from fedward.server.export import to_onnx
from fedward.server.leftovers import rounded
from fedward.simulations.studies import release_pairs
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study
from fedward.simulations.studies.untrained import settings_of, start_latents

MOST_BYTES = {"ternary-vit-m": 700_000, "ternary-vit-l": 2_000_000}  # in grey, at 28 pixels and at 224
PATCHED, LEAST_RATIO = "ternary-vit-m", 80.0
_SIDE = 28
_OUT = Path("runs/studies/sizes")


def measure(key: Row) -> Row:
    """Parameters, multiply-adds, bytes of the release's model, and of the same student's fp32 graph."""
    spec = StudentSpec(key["student"], key["channels"], key["side"], key["side"], 2)
    latents, settings = start_latents(spec), settings_of(spec, spec.name)
    release = to_onnx(settings, rounded(settings, latents))
    size = len(compressed(release, spec.family))
    fp32_bytes = len(to_onnx(settings_of(spec, f"fp32-{spec.network}"), latents))
    return {
        "parameters": len(latents),
        "multiply_adds": multiply_adds(spec),
        "bytes": size,
        "fp32_bytes": fp32_bytes,
        "ratio": fp32_bytes / size,
    }


def targets(rows: list[Row]) -> list[Target]:
    """What the two large students' files were to fit in, and patches between releases of one of them."""
    files = [
        Target(f"bytes of {row['key']['student']}", row["bytes"], MOST_BYTES[row["key"]["student"]], False)
        for row in rows
        if "bytes" in row and row["key"]["student"] in MOST_BYTES and row["key"]["channels"] == 1
    ]
    patches = [
        Target(f"patch below fp32, {row['flipped']:.1%} flipped", row["patch_ratio"], LEAST_RATIO, True)
        for row in rows
        if "patch_ratio" in row and row["key"]["student"] == PATCHED
    ]
    return files + patches


def _measure(key: Row) -> Row:
    if "rounds" in key:
        return release_pairs.trained(key)
    return release_pairs.simulated(key) if "flips" in key else measure(key)


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    student: Annotated[list[str] | None, typer.Option(help="Students; all where none is named.")] = None,
    side: Annotated[int, typer.Option(help="Pixels a side.")] = _SIDE,
    channels: Annotated[int, typer.Option(help="1 for grey, 3 for colour.")] = 1,
    patches: Annotated[bool, typer.Option(help="Measure patches between releases, too.")] = True,
    out: Annotated[Path, typer.Option(help="Where raw rows are kept.")] = _OUT,
) -> None:
    """Export and compress each student; patch one release from another."""
    keys: list[Row] = [
        {"student": name, "side": side, "channels": channels} for name in student or list(STUDENTS)
    ]
    if patches:
        keys += release_pairs.keys(PATCHED, side, channels)
    rows = measured(out, keys, _measure, Console(stderr=True).print)
    raise typer.Exit(conclude("sizes", rows, targets(rows), as_json))


if __name__ == "__main__":
    run_study(main)
