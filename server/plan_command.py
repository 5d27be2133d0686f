"""`fedward coordinator plan`: a new study's folder."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from fedward.common.datasets import read_npz
from fedward.common.files import config_folder
from fedward.common.printing import printable, unmistakable
from fedward.common.roles import COORDINATOR, require_role
from fedward.common.typed import typed_names
from fedward.server.coordinator import Coordinator
from fedward.server.planning import Plan, plan_deployed
from fedward.server.recipes import values_of

_RECIPE = Plan("")


def plan(
    study: Annotated[Path, typer.Argument(help="The new study's folder.")],
    reference: Annotated[
        Path, typer.Option(help="Public data of the task's kind, an npz in MedMNIST's layout.")
    ],
    name: Annotated[str | None, typer.Option(help="The study's name; by default the folder's.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="A site that takes part; by default all do.")] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="from-scratch; distilled, a body from public images; or imagenet, one of ImageNet's weights."
        ),
    ] = _RECIPE.recipe,
    public: Annotated[
        Path | None, typer.Option(help="Public images to distil on, an npz in MedMNIST's layout.")
    ] = None,
    student: Annotated[str, typer.Option(help="The model.")] = _RECIPE.student,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = _RECIPE.rounds,
    epsilon: Annotated[float, typer.Option(help="What the study may cost each site.")] = _RECIPE.epsilon,
    delta: Annotated[float, typer.Option(help="At which epsilon is stated.")] = _RECIPE.delta,
    local_steps: Annotated[
        int, typer.Option(min=1, help="Steps of a site in a round.")
    ] = _RECIPE.local_steps,
    sample_rate: Annotated[float, typer.Option(help="Chance of an image in a step.")] = _RECIPE.sample_rate,
    quorum: Annotated[
        int | None, typer.Option(help="Fewest replies that close a round; half if not given.")
    ] = None,
    round_timeout: Annotated[float, typer.Option(help="Seconds that a round waits.")] = _RECIPE.round_timeout,
    uplink: Annotated[
        str,
        typer.Option(
            "--uplink-codec", help="How updates travel: fp32, int8, coded8, coded4, coded3 or coded2."
        ),
    ] = _RECIPE.uplink,
    downlink: Annotated[
        str,
        typer.Option("--downlink-codec", help="How the model travels: fp32, int8, diff4, diff3 or diff2."),
    ] = _RECIPE.downlink,
    state: Annotated[Path | None, typer.Option(help="The coordinator's state folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a study of the federation's sites: the noise that keeps each within EPSILON, and its folder."""
    folder = state or config_folder() / "coordinator"
    coordinator = Coordinator(folder)
    require_role(folder, COORDINATOR)
    asked = Plan(
        name=name or study.resolve().name,
        sites=tuple(site or ()),
        student=student,
        rounds=rounds,
        epsilon=epsilon,
        delta=delta,
        local_steps=local_steps,
        sample_rate=sample_rate,
        quorum=quorum,
        round_timeout=round_timeout,
        uplink=uplink,
        downlink=downlink,
    )
    asked = dataclasses.replace(asked, **values_of(recipe, typed_names()))
    images = None if public is None else read_npz(public)
    made = plan_deployed(asked, coordinator, read_npz(reference), study, images, _tell)
    sites, noise = [one.name for one in made.hospitals], made.local.noise_multiplier
    if as_json:
        told = {"schema": 1, "study": made.name, "folder": str(study), "noise_multiplier": noise}
        typer.echo(json.dumps({**told, "sites": sites, "quorum": made.quorum}))
        return
    typer.echo(printable(f"Study {unmistakable(made.name)} of {len(sites)} sites, quorum {made.quorum}:"))
    typer.echo(
        f"{made.rounds} rounds with a noise multiplier of {noise:g} cost each at most epsilon {epsilon:g}."
    )
    typer.echo(printable(f"Start it with `fedward coordinator start {study}`."))


def _tell(sentence: str) -> None:
    typer.echo(printable(sentence), err=True)
