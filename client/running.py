"""`fedward hospital up`, `status` and `doctor`: the hospital's processes, and what may be wrong with them."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from fedward.client.checkup import Finding, findings
from fedward.client.daemon_client import is_up
from fedward.client.membership import Membership
from fedward.client.site import command
from fedward.client.state_folder import require_hospital
from fedward.client.uplink import Uplink
from fedward.common.errors import SettingRefused
from fedward.common.files import config_folder
from fedward.common.supervision import is_alive, read_processes

State = Annotated[Path | None, typer.Option(help="The hospital's state folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def up(
    state: State = None,
    superlink: Annotated[
        str | None, typer.Option(help="For a trial without a federation: SuperLink's address, host:port.")
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="In a trial: PEM file that its certificate is checked with.")
    ] = None,
    node_key: Annotated[Path | None, typer.Option(help="In a trial: the node's private key.")] = None,
    approve: Annotated[
        list[str] | None, typer.Option(help="SHA-256 of a further bundle whose runs may ask this hospital.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of loopback, for Prometheus; off by default.")
    ] = None,
) -> None:
    """Run this hospital's side of its studies, until SIGTERM or Ctrl-C; what dies is started again."""
    folder = require_hospital(_folder(state))
    uplink = None if superlink is None else Uplink(superlink, root_certificates, node_key)
    if uplink is None and (root_certificates or node_key):
        raise SettingRefused("--root-certificates and --node-key belong to a trial: name --superlink too.")
    if uplink is None:
        Membership.load(folder)  # refused here, before this process becomes another
    program = command(folder, uplink, approve or [], metrics_port)
    os.execv(program[0], program)  # noqa: S606 - this very Python, with nothing of the commands loaded


def status(state: State = None, as_json: AsJson = False) -> None:
    """Show which of this hospital's processes run, and whether the daemon answers; exit 1 if one is not."""
    folder = require_hospital(_folder(state))
    found = read_processes(folder)
    children = {} if found is None else found["children"]
    processes = {name: {**child, "alive": is_alive(child["pid"])} for name, child in children.items()}
    answers = is_up(folder)
    if as_json:
        typer.echo(
            json.dumps({"schema": 1, "up": found is not None, "daemon": answers, "children": processes})
        )
    else:
        _show(found is not None, processes, answers)
    raise typer.Exit(0 if answers and processes and all(one["alive"] for one in processes.values()) else 1)


def doctor(state: State = None, as_json: AsJson = False) -> None:
    """Name each thing that is wrong with this hospital, and its cure; exit 1 if anything is."""
    found = findings(_folder(state))
    if as_json:
        typer.echo(json.dumps({"schema": 1, "findings": [one.__dict__ for one in found]}))
    else:
        for one in found:
            typer.echo(_said(one))
    raise typer.Exit(1 if any(one.wrong for one in found) else 0)


def _folder(state: Path | None) -> Path:
    return state or config_folder() / "hospital"


def _show(is_supervised: bool, processes: dict[str, dict[str, object]], answers: bool) -> None:
    if not is_supervised:
        typer.echo("This hospital is down: start it with `fedward hospital up`.")
    for name, child in processes.items():
        alive = "runs" if child["alive"] else "is being restarted"
        typer.echo(f"{name} {alive} (process {child['pid']}, restarted {child['restarts']} times)")
    typer.echo(f"The daemon {'answers' if answers else 'does not answer'}.")


def _said(one: Finding) -> str:
    return f"wrong  {one.subject}: {one.wrong} {one.cure}" if one.wrong else f"right  {one.subject}"
