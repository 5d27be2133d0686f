"""`fedward bundle`: look into a release, verify it, pack it into one file."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fedward.common.bundle import Bundle, inspect_bundle, pack_tar, read_bundle
from fedward.common.errors import OutputRefused, Refusal
from fedward.common.files import write_atomically
from fedward.common.manifest import release_digest
from fedward.common.printing import printable
from fedward.common.trust import load_trust

app = typer.Typer(no_args_is_help=True, help="Inspect, verify and pack signed releases.")

BundlePath = Annotated[Path, typer.Argument(help="The release: a directory or a tar.")]
TrustPath = Annotated[Path | None, typer.Option(help="The study's trust file; by default your own.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def verify(bundle: BundlePath, trust: TrustPath = None, as_json: AsJson = False) -> None:
    """Say whether a trusted key signed exactly this BUNDLE and whether it is still to be used."""
    found = read_bundle(bundle, load_trust(trust))
    if as_json:
        typer.echo(json.dumps({"verified": True, **_summary(found)}))
    else:
        summary = _summary(found)
        typer.echo(
            printable(f"verified: {summary['study']} version {summary['version']}, {summary['digest']}")
        )


@app.command()
def inspect(bundle: BundlePath, trust: TrustPath = None, as_json: AsJson = False) -> None:
    """Show what stands in BUNDLE, and whether it verifies; an unverified one is shown and said to be so."""
    found, refusal = inspect_bundle(bundle, lambda: load_trust(trust))
    verdict = _verdict(refusal)
    if as_json:
        typer.echo(
            json.dumps({**verdict, "digest": release_digest(found.manifest), "manifest": found.manifest})
        )
        return
    if refusal is not None:
        typer.echo(printable(f"NOT VERIFIED, DO NOT USE. {refusal.name}: {refusal}"))
    else:
        typer.echo("verified")
    typer.echo(f"digest {release_digest(found.manifest)}")
    # JSON's own escapes keep a stranger's text from steering the terminal.
    typer.echo(json.dumps(found.manifest, indent=2))


@app.command()
def pack(
    bundle: Annotated[Path, typer.Argument(help="The release's directory.")],
    output: Annotated[Path, typer.Argument(help="The tar to write; it must not exist.")],
) -> None:
    """Write the release in directory BUNDLE as one tar: equal releases give equal bytes."""
    if os.path.lexists(output):
        raise OutputRefused(f"{output} exists already; name another file.")
    write_atomically(output, pack_tar(bundle))


def _verdict(refusal: Refusal | None) -> dict[str, Any]:
    if refusal is None:
        return {"verified": True}
    return {"verified": False, "error": refusal.name, "message": str(refusal)}


def _summary(bundle: Bundle) -> dict[str, Any]:
    named = {key: bundle.manifest[key] for key in ("study", "student", "version", "expires")}
    return {**named, "digest": release_digest(bundle.manifest)}
