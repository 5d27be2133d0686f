"""`fedward coordinator`: its studies, the federation's keys, its sites, and who may do what."""

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedward.common.enrolment import LIMIT_BYTES
from fedward.common.errors import EnrolmentRefused
from fedward.common.files import config_folder, make_folder, read_bounded, write_atomically
from fedward.common.flower_tools import SUPERLINK_PORT
from fedward.common.instants import spelled, utc_now
from fedward.common.ledger import Ledger
from fedward.common.printing import printable, unmistakable
from fedward.common.roles import AUDITOR, COORDINATOR, require_role
from fedward.common.watching_commands import logs_of, unit_of
from fedward.server import enrolment
from fedward.server.coordinator import LOG, Address, Coordinator
from fedward.server.gateway import CoordinatorGateway
from fedward.server.plan_command import plan
from fedward.server.sites import Site, Sites
from fedward.server.study_commands import resume, start, status, stop, up

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run studies across hospitals; who is in the federation, and its keys.",
)
for command in (up, plan, start, resume, stop, status):
    app.command()(command)
app.command("logs")(logs_of("coordinator"))
app.command("unit")(unit_of("coordinator"))

State = Annotated[Path | None, typer.Option(help="The coordinator's state folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_ANSWER_FILE = Path("fedward-answer.json")


@app.callback()
def coordinator() -> None:
    """Run studies across hospitals; who is in the federation, and its keys."""


@app.command()
def init(
    name: Annotated[str, typer.Option(help="The coordinator's public name.")],
    host: Annotated[str, typer.Option(help="DNS name or address by which hospitals call it.")],
    port: Annotated[int, typer.Option(help="The only open port.")] = 8443,
    listen: Annotated[str, typer.Option(help="Address of this host to listen on; * for all.")] = "*",
    superlink_port: Annotated[int, typer.Option(help="Of SuperLink, on loopback.")] = SUPERLINK_PORT,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make a coordinator's folder with its authority and its keys."""
    folder, now = _folder(state), utc_now()
    make_folder(folder, 0o700)
    made = Coordinator.create(folder, name, Address(host, port, listen, superlink_port), now)
    told = {"schema": 1, "state": str(folder), "fingerprint": made.federation(now).generations[0].fingerprint}
    if as_json:
        typer.echo(json.dumps(told))
    else:
        typer.echo(printable(f"Made {folder}. Hospitals that join ask for this fingerprint by telephone:"))
        typer.echo(f"  {told['fingerprint']}")


@app.command()
def enrol(
    request: Annotated[Path, typer.Argument(help="A hospital's request to join, or to renew.")],
    out: Annotated[Path, typer.Option(help="The answer's file, to be sent back.")] = _ANSWER_FILE,
    state: State = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="The request's, as the hospital reads it out; asked for if not given.")
    ] = None,
    overlap_days: Annotated[
        float, typer.Option(min=0, help="How long a renewing site's earlier keys go on.")
    ] = enrolment.SITE_OVERLAP.days,
    as_json: AsJson = False,
) -> None:
    """Check REQUEST and write the answer that makes the hospital a site, or renews it."""
    opened, user, now = _opened(state, COORDINATOR)
    seen = enrolment.review(opened, read_bounded(request, LIMIT_BYTES, refusal=EnrolmentRefused), now)
    if seen.needs_call and fingerprint is None:
        fingerprint = _asked(seen.request.name, seen.request.num_examples)
    file = enrolment.answer(opened, seen, fingerprint, now, user, timedelta(days=overlap_days))
    write_atomically(out, file)
    CoordinatorGateway(opened).refresh_if_running(now)
    own = opened.federation(now).generations[0].fingerprint
    if as_json:
        typer.echo(json.dumps({"schema": 1, "answer": str(out), "fingerprint": own}))
        return
    typer.echo(printable(f"Send {out} to {unmistakable(seen.request.name)}: it holds no secret."))
    if seen.needs_call:
        typer.echo("Whoever accepts it asks for this fingerprint by telephone:")
        typer.echo(f"  {own}")


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="The site's id or name.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Let SITE in no more, at once; the others notice nothing."""
    opened, user, now = _opened(state, COORDINATOR)
    revoked = enrolment.revoke(opened, site, now, user)
    is_reloaded = CoordinatorGateway(opened).refresh_if_running(now)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "site": revoked.id, "gateway_reloaded": is_reloaded}))
    else:
        running = (
            "The gateway refuses it now." if is_reloaded else "No gateway runs: the next one refuses it."
        )
        typer.echo(f"{revoked.id} is revoked. {running}")


@app.command()
def rotate(
    overlap_days: Annotated[float, typer.Option(min=0, help="How long the present keys go on.")] = 90,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make a new authority and signing key; sites learn of them with their next renewal."""
    opened, user, now = _opened(state, COORDINATOR)
    with opened.lock:
        opened.rotate(now, user, timedelta(days=overlap_days))
    CoordinatorGateway(opened).refresh_if_running(now)
    new = opened.federation(now).generations[-1].fingerprint
    if as_json:
        typer.echo(json.dumps({"schema": 1, "fingerprint": new, "overlap_days": overlap_days}))
    else:
        typer.echo(
            f"The new keys' fingerprint is {new}. Have every site renew within {overlap_days:g} days; "
            "`fedward coordinator sites` shows who has not."
        )


@app.command()
def sites(state: State = None, as_json: AsJson = False) -> None:
    """List the sites: certificates, and who has not renewed since the keys were rotated."""
    opened, _, now = _opened(state, COORDINATOR, AUDITOR)
    found = [_told(site, now, opened.newest) for site in Sites(opened.folder)]
    if as_json:
        typer.echo(json.dumps({"schema": 1, "sites": found}, indent=2))
        return
    table = Table("site", "name", "images", "certificate until", "")
    for one in found:
        table.add_row(
            one["id"], unmistakable(one["name"]), f"{one['num_examples']:,}", one["expires"], one["remark"]
        )
    Console().print(table, highlight=False)


@app.command()
def log(state: State = None, as_json: AsJson = False) -> None:
    """Show who enrolled, renewed, revoked and rotated what, and when; the log verifies, or is refused."""
    opened, _, _ = _opened(state, COORDINATOR, AUDITOR)
    entries = [
        {"entry": one.seq, "kind": one.kind, **one.body} for one in Ledger.open(opened.folder / LOG).entries
    ]
    if as_json:
        typer.echo(json.dumps({"schema": 1, "entries": entries}, indent=2))
        return
    for one in entries[1:]:
        said = ", ".join(f"{key} {value}" for key, value in one.items() if key not in ("entry", "kind"))
        typer.echo(printable(f"{one['entry']} {one['kind']}: {said}"))


def _told(site: Site, now: datetime, newest: int) -> dict[str, Any]:
    expires = site.certificates[-1].value.expires
    remarks = [
        f"revoked {spelled(site.revoked)}" if site.revoked else "",
        "expired" if expires <= now else "",
        "has not renewed since the rotation" if site.certificates[-1].value.generation < newest else "",
    ]
    return {
        "id": site.id,
        "name": site.name,
        "num_examples": site.num_examples,
        "expires": spelled(expires),
        "revoked": None if site.revoked is None else spelled(site.revoked),
        "signing": [key.keyid for key in site.keys(now)],
        "remark": next(filter(None, remarks), ""),
    }


def _opened(state: Path | None, *roles: str) -> tuple[Coordinator, str, datetime]:
    folder = _folder(state)
    opened = Coordinator(folder)
    return opened, require_role(folder, *roles), utc_now()


def _asked(name: str, count: int) -> str:
    if not sys.stdin.isatty():
        raise EnrolmentRefused(
            "Call the hospital and name the fingerprint that it reads out with --fingerprint."
        )
    typer.echo(f"{unmistakable(name)}, with {count:,} images, asks to join. Call it, by a number you know.")
    return str(typer.prompt("Type the fingerprint that it reads out"))


def _folder(state: Path | None) -> Path:
    return state or config_folder() / "coordinator"
