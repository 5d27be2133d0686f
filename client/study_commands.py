"""`fedward hospital studies` and `approve`: what was asked for here, and the administrator's word on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedward.client.approvals import Studies, Study
from fedward.client.policy_file import POLICY_FILE, read_policy
from fedward.common.config import LocalSettings
from fedward.common.files import config_folder
from fedward.common.mechanisms import Mechanism
from fedward.common.printing import printable, unmistakable
from fedward.common.privacy import epsilon

_State = Annotated[Path | None, typer.Option(help="The hospital's state folder.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def studies(state: _State = None, as_json: _AsJson = False) -> None:
    """List the studies that were asked for here and those that are approved; checks the policy, too."""
    folder = state or config_folder() / "hospital"
    policy = read_policy(folder)
    found = [
        {**_summary(study), "approved": name == "approved"}
        for name, listed in sorted(Studies(folder).listed().items())
        for study in listed
    ]
    if as_json:
        typer.echo(json.dumps({"schema": 1, "approval": policy.approval, "studies": found}, indent=2))
    else:
        _print(folder, policy.approval, found)


def approve(
    study: Annotated[str, typer.Argument(help="The study's name, as `fedward hospital studies` shows it.")],
    state: _State = None,
    settings: Annotated[str, typer.Option(help="Beginning of its settings' digest.")] = "",
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take the approval back.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Let STUDY train here with the settings that it asked for; with others it has to be approved again."""
    listed = Studies(state or config_folder() / "hospital")
    found = _summary(listed.withdraw(study) if withdraw else listed.approve(study, settings))
    if as_json:
        typer.echo(json.dumps({"schema": 1, **found, "approved": not withdraw}))
        return
    name = unmistakable(found["study"])
    if withdraw:
        typer.echo(f"Study {name} is no longer approved: its later rounds are refused.")
    else:
        typer.echo(f"Study {name} is approved with the settings {found['digest'][:12]}: {_said(found)}.")


def add_to(app: typer.Typer) -> None:
    """Make these commands parts of `fedward hospital`."""
    commands: tuple[Callable[..., None], ...] = (studies, approve)
    for command in commands:
        app.command()(command)


def _summary(study: Study) -> dict[str, Any]:
    """The study and what it would cost: upper bounds by RDP, quick to compute."""
    local = LocalSettings.from_dict(study["settings"])
    steps = local.local_steps
    return {
        **study,
        "round_epsilon": _cost(local, steps),
        "study_epsilon": _cost(local, steps * local.rounds),
        "delta": local.target_delta,
    }


def _cost(local: LocalSettings, steps: int) -> float | None:
    if local.noise_multiplier == 0.0:
        return None
    step = Mechanism(local.noise_multiplier, local.sample_rate, steps)
    return epsilon([step], local.target_delta, "rdp")


def _said(found: dict[str, Any]) -> str:
    local = found["settings"]
    cost = (
        "no noise, so no privacy"
        if found["study_epsilon"] is None
        else f"epsilon at most {found['round_epsilon']:.3g} a round and {found['study_epsilon']:.3g} in all"
    )
    pruned = " pruned" if local.get("widths") else ""
    bits = " with fewer bits" if local.get("bits") else ""
    return f"{local['student']}{pruned}{bits}, {local['rounds']} rounds, {cost}"


def _print(folder: Path, approval: bool, found: list[dict[str, Any]]) -> None:
    console = Console()
    rule = "waits for approval" if approval else f"needs no approval ({folder / POLICY_FILE} asks for none)"
    console.print(f"A new study {rule}.", markup=False, highlight=False, soft_wrap=True)
    if not found:
        console.print("No study waits, and none is approved.")
        return
    table = Table("study", "settings", "asked", "what it is", "approved", box=None)
    for one in found:
        table.add_row(
            printable(unmistakable(one["study"])).replace("[", r"\["),
            one["digest"][:12],
            str(one["time"]),
            _said(one),
            "yes" if one["approved"] else "no",
        )
    console.print(table, highlight=False)
