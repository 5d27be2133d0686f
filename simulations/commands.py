"""`fedward simulate`: a whole federation on this machine."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from fedward.common.errors import SettingRefused
from fedward.simulations.options import Options
from fedward.simulations.prepare import prepare, reopen
from fedward.simulations.simulate import Finished, run

_D = Options()
_HELP = "Train, release and report a federated study on this machine, with the code that hospitals run."


def _epsilon(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise SettingRefused(f"--epsilon takes a number or none, not {text!r}.") from error


def simulate(
    dataset: Annotated[
        str, typer.Option(help="auto, a MedMNIST name, mednist, phantom, or an npz file.")
    ] = _D.dataset,
    hospitals: Annotated[int, typer.Option(help="Number of simulated hospitals.")] = _D.hospitals,
    partition: Annotated[str, typer.Option(help="iid, dirichlet:A, size:A or scanner.")] = _D.partition,
    rounds: Annotated[int, typer.Option(help="Rounds of the study.")] = _D.rounds,
    epsilon: Annotated[
        str, typer.Option(help="Each hospital's budget, or none for training without privacy.")
    ] = "3",
    delta: Annotated[float, typer.Option(help="Delta of the guarantee.")] = _D.delta,
    student: Annotated[str, typer.Option(help="{ternary,int8,fp32}-{cnn,depthwise}.")] = _D.student,
    engine: Annotated[
        str, typer.Option(help="inproc (this process) or ray (Flower's simulation).")
    ] = _D.engine,
    seed: Annotated[
        int, typer.Option(help="Key of all randomness; noise from a seed protects nobody.")
    ] = _D.seed,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/simulation"),
    local_steps: Annotated[int, typer.Option(help="Noised steps a round.")] = _D.local_steps,
    sample_rate: Annotated[float, typer.Option(help="Poisson rate of an image a step.")] = _D.sample_rate,
    learning_rate: Annotated[float, typer.Option(help="Hospital's learning rate.")] = _D.learning_rate,
    max_grad_norm: Annotated[float, typer.Option(help="Clip of one image's gradient.")] = _D.max_grad_norm,
    views: Annotated[int, typer.Option(help="Augmented views averaged inside the clip.")] = _D.views,
    augmentation: Annotated[str, typer.Option(help="none, shift or affine.")] = _D.augmentation,
    schedule: Annotated[str, typer.Option(help="constant or cosine.")] = _D.schedule,
    server_learning_rate: Annotated[
        float, typer.Option(help="Coordinator's step.")
    ] = _D.server_learning_rate,
    server_momentum: Annotated[float, typer.Option(help="FedAvgM's momentum.")] = _D.server_momentum,
    averaged_rounds: Annotated[
        int, typer.Option(help="Released model: mean of the last N.")
    ] = _D.averaged_rounds,
    uplink: Annotated[str, typer.Option(help="Codec of updates: fp32 or int8.")] = _D.uplink,
    downlink: Annotated[str, typer.Option(help="Codec of the model: fp32 or int8.")] = _D.downlink,
    reference: Annotated[
        str, typer.Option(help="Public reference data: val, none or a data set.")
    ] = _D.reference,
    prior: Annotated[str, typer.Option(help="Public class prior: reference or none.")] = _D.prior,
    decision: Annotated[str, typer.Option(help="balanced (threshold 0) or calibrated.")] = _D.decision,
    teacher: Annotated[str, typer.Option(help="Public teacher: none or reference.")] = _D.teacher,
    distillation_alpha: Annotated[float, typer.Option(help="Weight of the teacher.")] = _D.distillation_alpha,
    distillation_temperature: Annotated[
        float, typer.Option(help="Its temperature.")
    ] = _D.distillation_temperature,
    continue_from: Annotated[str | None, typer.Option(help="Release to go on from.")] = None,
    ewc_lambda: Annotated[float, typer.Option(help="Strength of EWC toward that release.")] = _D.ewc_lambda,
    ewc_reference: Annotated[
        str | None, typer.Option(help="Public data of the earlier task, for the Fisher.")
    ] = None,
    quorum: Annotated[
        int | None, typer.Option(help="Fewest replies that close a round; half by default.")
    ] = None,
    round_timeout: Annotated[float, typer.Option(help="Seconds a round waits.")] = _D.round_timeout,
    compare: Annotated[
        bool, typer.Option("--compare", help="Add the three comparisons to the report.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its settings.")
    ] = False,
    trust: Annotated[Path | None, typer.Option(help="Trust file for --continue-from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json on standard output.")] = False,
) -> None:
    """Train, release and report a federated study on this machine, with the code that hospitals run."""
    given: dict[str, Any] = {**locals(), "epsilon": _epsilon(epsilon)}
    console = Console(stderr=True)
    if resume:
        _only_resume()
        simulation = reopen(out)
    else:
        simulation = prepare(
            Options(**{field.name: given[field.name] for field in fields(Options)}), out, trust
        )
    console.print(f"[bold]{simulation.dataset.name}[/bold]: {simulation.dataset.source}")
    try:
        finished = run(simulation, console)
    except KeyboardInterrupt:
        console.print(f"Stopped. Nothing is lost: fedward simulate --resume --out {out}")
        raise
    _print(finished, out, as_json, console)


def _only_resume() -> None:
    """The run keeps its settings: others, given beside --resume, would be ignored in silence."""
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    given = [name for name in context.params if context.get_parameter_source(name) == source]
    if extra := sorted(set(given) - {"resume", "out", "as_json", "trust"}):
        flags = ", ".join("--" + name.replace("_", "-") for name in extra)
        raise SettingRefused(f"--resume goes on with the run's own settings: leave out {flags}.")


def _print(finished: Finished, out: Path, as_json: bool, console: Console) -> None:
    if as_json:
        json.dump(finished.metrics, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    release = finished.metrics["release"]
    ratio = release["fp32_bytes"] / release["bytes"]
    spent = [site["epsilon"] for site in finished.metrics["hospitals"] if site["epsilon"] is not None]
    auc = "undefined" if release["auc"] is None else f"{release['auc']:.3f}"
    console.print(
        f"test AUC {auc}, accuracy {release['accuracy']:.3f}, balanced {release['balanced_accuracy']:.3f}; "
        f"epsilon {max(spent):.3f} at most"
        if spent
        else f"test AUC {auc}, without privacy"
    )
    console.print(
        f"model {release['bytes']:,} bytes, {ratio:.1f}x below fp32; bundle {release['bundle_bytes']:,} bytes"
    )
    console.print(f"report  {out / 'report.html'}\nbundle  {finished.bundle}")


app = typer.Typer(add_completion=False, help=_HELP)
app.command(name="simulate")(simulate)
