"""`fedward hospital init`: a hospital's state folder, with its images and their budget."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from fedward.client.hospital import create_hospital
from fedward.client.policy_file import POLICY_FILE
from fedward.client.state_folder import PROFILE
from fedward.common.datasets import read_split
from fedward.common.errors import OutputRefused
from fedward.common.files import config_folder, make_folder, write_atomically
from fedward.common.printing import printable
from fedward.common.roles import SITE_ADMINISTRATOR, require_role

_POLICY = b"""# What this hospital allows, whoever asks: docs/operate-hospital.md lists the rules.
approval = true  # a new study waits for `fedward hospital approve`
"""


def init(
    name: Annotated[str, typer.Option(help="The hospital's public name in the federation.")],
    data: Annotated[Path, typer.Option(help="Its images: an npz of images and labels, and nothing else.")],
    classes: Annotated[int, typer.Option(min=2, help="How many classes its labels distinguish.")],
    epsilon: Annotated[float, typer.Option(help="What all studies together may cost these images.")],
    delta: Annotated[float, typer.Option(help="At which epsilon is stated.")] = 1e-5,
    state: Annotated[Path | None, typer.Option(help="The hospital's state folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make this hospital's folder: its images are copied in and registered for a privacy budget."""
    folder = state or config_folder() / "hospital"
    if (folder / PROFILE).exists():
        raise OutputRefused(f"{folder} holds a hospital already: name another --state folder.")
    records = read_split(data)
    make_folder(folder, 0o700)
    require_role(folder, SITE_ADMINISTRATOR)
    if not os.path.lexists(folder / POLICY_FILE):  # before there is anything to be asked for
        write_atomically(folder / POLICY_FILE, _POLICY)
    profile = create_hospital(folder, name, records, epsilon, delta, None, classes)
    if as_json:
        told = {"schema": 1, "state": str(folder), "images": len(records.images)}
        typer.echo(json.dumps({**told, "declared": profile.num_examples}))
        return
    typer.echo(
        printable(f"Made {folder} with {len(records.images):,} images, and epsilon {epsilon:g} for all.")
    )
    typer.echo("A new study waits for `fedward hospital approve`; hospital.toml there says what is allowed.")
    typer.echo("Next: `fedward hospital join`.")
