"""`fedward coordinator up`, `start`, `resume`, `stop` and `status`: its processes and its studies."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedward.common import errors
from fedward.common.errors import EngineFailed, Refusal, SettingRefused
from fedward.common.exposition import metrics_served
from fedward.common.files import config_folder
from fedward.common.logs import log_to_stderr
from fedward.common.printing import unmistakable
from fedward.common.supervision import is_alive, read_processes, until_signalled
from fedward.server.checkpoint import load_checkpoint
from fedward.server.orders import FINISHED, REFUSED, STOPPED, Order, Orders
from fedward.server.processes import run_coordinator
from fedward.server.progress import read_events
from fedward.server.prometheus import CoordinatorMetrics
from fedward.server.study_folder import PROGRESS, StudyFolder
from fedward.server.watching import watch

_LOOK_SECONDS = 0.5

State = Annotated[Path | None, typer.Option(help="The coordinator's state folder.")]
StudyPath = Annotated[Path, typer.Argument(help="The study's folder.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when the study is finished or refused.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def up(
    state: State = None,
    trial_port: Annotated[
        int | None,
        typer.Option(help="For a trial on loopback without a federation: SuperLink's port, without TLS."),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of loopback, for Prometheus; off by default.")
    ] = None,
) -> None:
    """Run the coordinator, its gateway and its studies, until SIGTERM or Ctrl-C; what dies is restarted."""
    log_to_stderr()
    with metrics_served(metrics_port, CoordinatorMetrics(_folder(state))):
        run_coordinator(_folder(state), until_signalled(), trial_port)


def start(study: StudyPath, state: State = None, wait: Wait = False, as_json: AsJson = False) -> None:
    """Start a study."""
    StudyFolder(study).study()
    _ordered(_folder(state), study, True, wait, as_json)


def resume(study: StudyPath, state: State = None, wait: Wait = False, as_json: AsJson = False) -> None:
    """Go on with a study from its last closed round."""
    folder = StudyFolder(study)
    load_checkpoint(folder.checkpoint, folder.study())
    _ordered(_folder(state), study, True, wait, as_json)


def stop(study: StudyPath, state: State = None, as_json: AsJson = False) -> None:
    """Stop a study; its closed rounds are kept, and `resume` goes on from them."""
    StudyFolder(study).study()
    _ordered(_folder(state), study, False, False, as_json)


def status(
    state: State = None,
    as_json: AsJson = False,
    is_watched: Annotated[bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C.")] = False,
) -> None:
    """Show the coordinator's processes, and of each study its rounds, hospitals and refusals."""
    folder = _folder(state)
    if is_watched and as_json:
        raise SettingRefused("--watch shows it to a person and --json to a program: ask for one of them.")
    if is_watched:
        watch(folder, Console(), until_signalled())
        return
    processes, orders = read_processes(folder), Orders(folder)
    studies = [_study_status(orders, order) for order in orders.all()]
    children = {} if processes is None else processes["children"]
    alive = {name: {**child, "alive": is_alive(child["pid"])} for name, child in children.items()}
    if as_json:
        typer.echo(
            json.dumps({"schema": 1, "up": processes is not None, "children": alive, "studies": studies})
        )
        return
    typer.echo(
        "The coordinator is up." if processes else "The coordinator is down: `fedward coordinator up`."
    )
    for name, child in alive.items():
        typer.echo(f"{name} {'runs' if child['alive'] else 'is being restarted'} (process {child['pid']})")
    for one in studies:
        _show(one)


def _folder(state: Path | None) -> Path:
    return state or config_folder() / "coordinator"


def _ordered(state: Path, study: Path, wanted: bool, wait: bool, as_json: bool) -> None:
    orders = Orders(state)
    order = orders.give(study, wanted)
    if not wait:
        is_up = read_processes(state) is not None
        said = "Ordered." if is_up else "Ordered; it begins when `fedward coordinator up` runs."
        typer.echo(json.dumps({"schema": 1, "order": order.number, "up": is_up}) if as_json else said)
        return
    while (report := orders.report_of(order)).state not in (FINISHED, REFUSED, STOPPED):
        time.sleep(_LOOK_SECONDS)
    if report.state == REFUSED:
        raise _refusal(report.said)
    typer.echo(json.dumps({"schema": 1, **report.__dict__}) if as_json else f"The study is {report.state}.")


def _refusal(said: str) -> Refusal:
    name, _, sentence = said.partition(": ")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, Refusal):
        return kind(sentence)
    return EngineFailed(said)


def _study_status(orders: Orders, order: Order) -> dict[str, Any]:
    folder, report = StudyFolder(Path(order.folder)), orders.report_of(order)
    about = {"folder": order.folder, "state": report.state, "said": report.said}
    try:
        study = folder.study()
    except Refusal as refusal:
        gone = {"study": order.folder, "rounds": {"closed": 0, "of": 0}, "refusals": []}
        return {**gone, **about, "said": f"{refusal.name}: {refusal}"}
    closed = [event for event in read_events(folder.path / PROGRESS, 0)[0] if event["event"] == "closed"]
    last = closed[-1] if closed else {}
    return {
        "study": study.name,
        **about,
        "rounds": {"closed": last.get("round", 0), "of": study.rounds},
        "replies": last.get("replies"),
        "refusals": last.get("refusals", []),
        "uplink_bytes": sum(event["uplink_bytes"] for event in closed),
        "downlink_bytes": sum(event["downlink_bytes"] for event in closed),
    }


def _show(one: dict[str, Any]) -> None:
    rounds = one["rounds"]
    typer.echo(f"{unmistakable(one['study'])}: {one['state']}, round {rounds['closed']} of {rounds['of']}")
    if one["said"]:
        typer.echo(f"  {unmistakable(one['said'])}")
    for lost in one["refusals"]:
        typer.echo("  " + unmistakable(f"{lost['hospital']}: {lost['name']}: {lost['message']}"))
