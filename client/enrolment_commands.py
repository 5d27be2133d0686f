"""`fedward hospital join`, `accept`, `renew`: two files and two telephone calls make a site of a hospital."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedward.client import enrolment
from fedward.client.egress import open_gate
from fedward.client.gateway import HospitalGateway
from fedward.client.profile import named_and_counted
from fedward.common.declared import declared_count
from fedward.common.enrolment import LIMIT_BYTES, JoinRequest
from fedward.common.errors import EnrolmentRefused
from fedward.common.files import config_folder, make_folder, read_bounded, write_atomically
from fedward.common.instants import spelled, utc_now
from fedward.common.printing import printable
from fedward.common.roles import SITE_ADMINISTRATOR, require_role

State = Annotated[Path | None, typer.Option(help="The hospital's state folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[Path, typer.Option("--out", help="The request's file, to be sent to the coordinator.")]
_REQUEST_FILE = Path("fedward-request.json")


def join(
    state: State = None,
    name: Annotated[
        str | None, typer.Option(help="The hospital's public name; by default the one given to `init`.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="How many images it has, told rounded up to ten; as for --name.")
    ] = None,
    out: Output = _REQUEST_FILE,
    anew: Annotated[bool, typer.Option("--anew", help="Although it is in a federation already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make this hospital's keys and a signed request to join a federation."""
    folder = _folder(state)
    make_folder(folder, 0o700)
    require_role(folder, SITE_ADMINISTRATOR)
    request, file = enrolment.join(folder, *_declared(folder, name, images), utc_now(), anew)
    _hand_out(folder, request, file, out, as_json)


def renew(
    state: State = None,
    out: Output = _REQUEST_FILE,
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="Also for the SuperNode and for signing messages.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for a new certificate for a new key, before the present one expires."""
    folder = _folder(state)
    require_role(folder, SITE_ADMINISTRATOR)
    request, file = enrolment.renew(folder, utc_now(), new_keys)
    _hand_out(folder, request, file, out, as_json)


def accept(
    answer: Annotated[Path, typer.Argument(help="The coordinator's answer.")],
    state: State = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="The coordinator's, as it reads it out; asked for if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the coordinator's ANSWER and take this hospital's place in the federation."""
    folder, now = _folder(state), utc_now()
    require_role(folder, SITE_ADMINISTRATOR)
    file = read_bounded(answer, LIMIT_BYTES, refusal=EnrolmentRefused)
    found, generation, needs_call = enrolment.look(folder, file, now)
    if needs_call and fingerprint is None:
        fingerprint = _asked(f"{found.federation.coordinator} at {found.federation.host}")
    member = enrolment.accept(folder, file, fingerprint, now)
    is_taken_over = (gateway := HospitalGateway.running(folder)) is not None and gateway.refresh(now)
    told: dict[str, Any] = {
        "schema": 1,
        "site": member.site,
        "coordinator": generation.fingerprint,
        "expires": spelled(member.certificate.not_valid_after_utc),
        "gateway_reloaded": is_taken_over,
    }
    if as_json:
        typer.echo(json.dumps(told))
    else:
        typer.echo(
            printable(
                f"This hospital is {told['site']} in the federation of {member.federation.coordinator}. Its "
                f"certificate is good until {told['expires']}: run `fedward hospital renew` a month before."
            )
        )
        if not is_taken_over:
            typer.echo("Next: `fedward hospital up`, where it does not run already.")


def _declared(folder: Path, name: str | None, images: int | None) -> tuple[str, int]:
    """What the folder says, which any answer of the daemon's will say too."""
    known = named_and_counted(folder)
    if known is None:
        if name is None or images is None:
            raise EnrolmentRefused(
                f"{folder} holds no images yet: run `fedward hospital init`, or name --name and --images."
            )
        return name, images
    if name not in (None, known[0]) or (images is not None and declared_count(images) != known[1]):
        raise EnrolmentRefused(
            "This folder's hospital has another name or number of images: leave out --name and --images."
        )
    return known


def _hand_out(state: Path, request: JoinRequest, file: bytes, out: Path, as_json: bool) -> None:
    open_gate(state).hand_out(request.statement()["predicate"])
    write_atomically(out, file)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "request": str(out), "fingerprint": request.fingerprint}))
        return
    typer.echo(printable(f"Send {out} to the coordinator: it holds no secret."))
    if request.site is None:
        typer.echo("The coordinator will call you; read this out, and nobody else's:")
        typer.echo(f"  {request.fingerprint}")


def _asked(whose: str) -> str:
    if not sys.stdin.isatty():
        raise EnrolmentRefused(
            "Call the coordinator and name the fingerprint that it reads out with --fingerprint."
        )
    typer.echo(printable(f"Call the people of {whose}, by a number that you know, not one from the mail."))
    return str(typer.prompt("Type the fingerprint that they read out"))


def _folder(state: Path | None) -> Path:
    return state or config_folder() / "hospital"
