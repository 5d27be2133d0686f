"""What a DP step costs beside a plain SGD step: ratios of medians, interleaved in one process, one thread.

    python -m fedward.simulations.studies.dp_step --json [--repeats 25] [--out FOLDER]

Engines: `fedward` is the hospital's step (per-sample gradients, clip, keyed noise, ternary latents) on the
whole batch at once, as all others take it; `fedward-in-passes` the same in the hospital's physical batches;
`opacus-hooks`, `opacus-functorch` and `opacus-ghost` are Opacus' own modes on the same network at fp32.
"""

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from opacus import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from rich.console import Console
from torch import Tensor, nn

from fedward.client.dp_sgd import KeyedDPOptimizer
from fedward.client.latent import LatentSGD
from fedward.client.training import PHYSICAL_ROWS
from fedward.common.losses import classification
from fedward.common.models import FAMILIES, StudentSpec, build_student, initialise
from fedward.common.per_sample import PerSampleGradients
from fedward.common.randomness import KeyedGenerator
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study

BATCH = 128
PASSES = {"fedward": BATCH, "fedward-in-passes": PHYSICAL_ROWS}
ENGINES = (*PASSES, "opacus-hooks", "opacus-functorch", "opacus-ghost")
TARGET = 1.8
_Step = Callable[[], None]


def _student(family: str) -> nn.Sequential:
    model = build_student(StudentSpec(f"fp32-{family}", 1, 28, 28, 2))
    initialise(model, KeyedGenerator.from_seed(0))
    return model


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 1, 28, 28, generator=generator) * 2 - 1
    return images, torch.randint(0, 2, (BATCH,), generator=generator)


def plain_step(family: str) -> _Step:
    """Forward, backward and SGD."""
    model, (images, labels) = _student(family), _batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        classification(model(images), labels, "binary").mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def fedward_step(family: str, physical_rows: int) -> _Step:
    """The hospital's own engine and optimizer on the batch, in passes of `physical_rows`."""
    model, (images, labels) = _student(family), _batch()
    latents = [parameter.detach().clone() for parameter in model.parameters()]
    latent = LatentSGD(model, latents, "ternary", 0.01)
    optimizer = KeyedDPOptimizer(latent, KeyedGenerator.from_seed(1), 1.0, 1.0, BATCH)
    engine = PerSampleGradients(model)
    passes = list(zip(torch.split(images, physical_rows), torch.split(labels, physical_rows), strict=True))

    def step() -> None:
        for rows, own in passes:
            for gradients in engine.in_parts(rows, lambda logits, y=own: classification(logits, y, "binary")):  # type: ignore[misc]
                optimizer.accumulate(gradients)
        optimizer.finish()

    return step


def opacus_step(family: str, mode: str) -> _Step:
    """Opacus' own wrapper and optimizer, its own noise."""
    images, labels = _batch()
    settings: dict[str, Any] = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "expected_batch_size": BATCH}
    if mode == "ghost":
        return _ghost_step(_student(family), images, labels, settings)
    wrapped = GradSampleModule(_student(family), force_functorch=mode == "functorch")
    optimizer = DPOptimizer(torch.optim.SGD(wrapped.parameters(), lr=0.01), **settings)

    def step() -> None:
        optimizer.zero_grad()
        classification(wrapped(images), labels, "binary").mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ghost_step(model: nn.Module, images: Tensor, labels: Tensor, settings: dict[str, Any]) -> _Step:
    wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(torch.optim.SGD(wrapped.parameters(), lr=0.01), **settings)
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(images), labels).backward()
        optimizer.step()

    return step


def build(family: str, engine: str) -> _Step:
    """The step of an engine, ready to be timed."""
    if engine == "plain":
        return plain_step(family)
    if engine in PASSES:
        return fedward_step(family, PASSES[engine])
    return opacus_step(family, engine.removeprefix("opacus-"))


def measure(key: Row) -> Row:
    """Medians of thread-CPU milliseconds, all engines of a family taking turns, and peak memory of each."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = ("plain", *ENGINES)
    steps = {name: build(key["family"], name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(key["repeats"] + 3):
        for name, step in steps.items():
            started = time.thread_time()
            step()
            if repeat >= 3:
                times[name].append(1000 * (time.thread_time() - started))
    milliseconds = {name: median(own) for name, own in times.items()}
    return {
        "milliseconds": milliseconds,
        "ratio": {name: milliseconds[name] / milliseconds["plain"] for name in ENGINES},
        "peak_bytes": {name: _peak(key["family"], name) for name in names},
    }


def _peak(family: str, engine: str) -> int:
    """Peak resident bytes of five steps above what their process held before them."""
    command = [sys.executable, "-m", "fedward.simulations.studies.dp_step", "--probe", f"{family} {engine}"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _probe(family: str, engine: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    step = build(family, engine)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from here
    before = _status("VmRSS")
    for _ in range(5):
        step()
    sys.stdout.write(str(_status("VmHWM") - before))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(
    repeats: Annotated[int, typer.Option(min=3)] = 25,
    out: Annotated[Path, typer.Option(help="Where raw rows are kept.")] = Path("runs/studies/dp_step"),
    as_json: Annotated[bool, typer.Option("--json")] = False,
    probe: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time every engine on every family."""
    if probe:
        _probe(*probe.split())
        return
    keys = [{"family": family, "repeats": repeats, "run": run} for run in range(3) for family in FAMILIES]
    rows = measured(out, keys, measure, Console(stderr=True).print)
    ratios = {f: median(r["ratio"]["fedward"] for r in rows if r["key"]["family"] == f) for f in FAMILIES}
    targets = [Target(f"DP step over plain step, {f}", ratio, TARGET, False) for f, ratio in ratios.items()]
    raise typer.Exit(conclude("dp_step", rows, targets, as_json))


if __name__ == "__main__":
    run_study(main)
