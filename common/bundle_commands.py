"""`fedward bundle`: look into a release, verify it, pack it, patch it from the one before it."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fedward.common.bundle import Bundle, inspect_bundle, pack_tar, read_bundle, read_tar
from fedward.common.errors import OutputRefused, PatchRefused, Refusal
from fedward.common.files import read_bounded, write_atomically
from fedward.common.manifest import release_digest
from fedward.common.patch import PATCH_LIMIT_BYTES, apply_patch, make_patch
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
    _check_new(output)
    write_atomically(output, pack_tar(bundle))


@app.command()
def patch(
    old: Annotated[Path, typer.Argument(help="The release that is there already: a directory or a tar.")],
    new: Annotated[Path, typer.Argument(help="The release to come: a directory or a tar.")],
    output: Annotated[Path, typer.Argument(help="The patch to write; it must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Write what makes NEW of OLD, in a few per cent of its bytes; both must be of the same student."""
    _check_new(output)
    tars = pack_tar(old), pack_tar(new)
    made = make_patch(*tars)
    write_atomically(output, made)
    if as_json:
        typer.echo(json.dumps({"patch": str(output), "bytes": len(made), "release_bytes": len(tars[1])}))
    else:
        typer.echo(printable(f"{output}: {len(made):,} bytes for a release of {len(tars[1]):,}"))


@app.command()
def apply(
    old: Annotated[Path, typer.Argument(help="The release that the patch is for: a directory or a tar.")],
    patch_file: Annotated[Path, typer.Argument(metavar="PATCH", help="The patch.")],
    output: Annotated[Path, typer.Argument(help="The new release's tar; it must not exist.")],
    trust: TrustPath = None,
    as_json: AsJson = False,
) -> None:
    """Make the new release of OLD and PATCH; it is written only if a trusted key signed it."""
    _check_new(output)
    keys = load_trust(trust)
    tar = apply_patch(pack_tar(old), read_bounded(patch_file, PATCH_LIMIT_BYTES, refusal=PatchRefused))
    summary = _summary(read_tar(tar, keys))
    write_atomically(output, tar)
    if as_json:
        typer.echo(json.dumps({"verified": True, "release": str(output), **summary}))
    else:
        typer.echo(printable(f"verified: {summary['study']} version {summary['version']}, {output}"))


def _check_new(output: Path) -> None:
    if os.path.lexists(output):
        raise OutputRefused(f"{output} exists already; name another file.")


def _verdict(refusal: Refusal | None) -> dict[str, Any]:
    if refusal is None:
        return {"verified": True}
    return {"verified": False, "error": refusal.name, "message": str(refusal)}


def _summary(bundle: Bundle) -> dict[str, Any]:
    named = {key: bundle.manifest[key] for key in ("study", "student", "version", "expires")}
    return {**named, "digest": release_digest(bundle.manifest)}
