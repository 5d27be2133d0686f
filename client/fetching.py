"""`fedward hospital fetch`: a release, through the hospital's own gateway, verified before it is kept."""

import contextlib
import hashlib
import http.client
import json
import os
import ssl
from pathlib import Path
from typing import Annotated

import typer

from fedward.client.gateway import HospitalGateway
from fedward.client.membership import Membership
from fedward.common.bundle import TAR_LIMIT_BYTES, read_bundle
from fedward.common.errors import BundleRefused, GatewayFailed, UnknownName
from fedward.common.files import config_folder, make_folder, read_bounded, write_atomically
from fedward.common.fleet import RELEASES_PATH
from fedward.common.flower_tools import LOOPBACK
from fedward.common.instants import utc_now
from fedward.common.manifest import release_digest
from fedward.common.patch import PATCH_LIMIT_BYTES, apply_patch
from fedward.common.printing import printable, unmistakable
from fedward.common.release_index import INDEX, INDEX_LIMIT_BYTES, Listed, listed, patch_name
from fedward.common.trust import TRUST_FILE, load_trust, write_trust

RELEASES = "releases"  # of a hospital's state folder
_SECONDS = 60.0
_MOST_BASES = 3  # that are asked for, newest first


def fetch(
    study: Annotated[
        str | None, typer.Argument(help="The study's name; by default the newest release.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="The hospital's state folder.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The release's file; by default in the state folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch the newest release, or STUDY's, and the trust file that it verifies with."""
    folder = state or config_folder() / "hospital"
    member = Membership.load(folder)
    keys = member.coordinator_keys(utc_now())
    entry, tar, came = fetched(folder, study)
    place = folder / RELEASES
    make_folder(place, 0o700)
    trust, target = place / TRUST_FILE, out or place / entry.file
    write_trust(trust, keys)
    _keep(target, tar, entry, trust)
    if as_json:
        told = {"schema": 1, "release": str(target), "trust": str(trust), "digest": entry.digest}
        typer.echo(json.dumps({**told, "study": entry.study, "version": entry.version, "bytes": came}))
        return
    typer.echo(printable(f"{unmistakable(entry.study)}, version {entry.version}, verified: {target}"))
    typer.echo(f"{came:,} bytes came for a release of {len(tar):,}.")
    typer.echo(printable(f"Use it with `fedward edge predict {target} IMAGE --trust {trust}`."))


def fetched(state: Path, study: str | None) -> tuple[Listed, bytes, int]:
    """The newest release, of one study or of any, its bytes, which are those that its name promises, and how
    many came for it: fewer, where one is held here from which the coordinator has a patch.

    Raises:
        GatewayFailed: the hospital's gateway is down, or the coordinator does not answer.
        BundleRefused: what came is not what the index says.
        UnknownName: there is no such release.
    """
    index = _get(state, INDEX, INDEX_LIMIT_BYTES)
    if index is None:
        raise UnknownName("The coordinator has published no release yet.")
    try:
        known = listed(index)
    except ValueError as error:
        raise BundleRefused(
            "The coordinator's list of releases is damaged: ask it to put that right."
        ) from error
    found = [one for one in known if study in (None, one.study)]
    if not found:
        names = sorted({unmistakable(one.study) for one in known})
        raise UnknownName(f"There is no such release; there are those of {', '.join(names) or 'no study'}.")
    entry = found[-1]
    return (entry, *(_patched(state, known, entry) or _whole(state, entry)))


def _whole(state: Path, entry: Listed) -> tuple[bytes, int]:
    tar = _get(state, entry.file, min(entry.bytes, TAR_LIMIT_BYTES))
    if tar is None:
        raise GatewayFailed("The coordinator lists a release that it does not have: tell the coordinator.")
    if not _is_promised(tar, entry):
        raise BundleRefused("The release came with other bytes than its name promises: fetch it again.")
    return tar, len(tar)


def _patched(state: Path, known: list[Listed], entry: Listed) -> tuple[bytes, int] | None:
    """The release, made of one that is held here, and the patch's bytes; None where that is not to be had."""
    place = state / RELEASES
    held = [one for one in known if one.file != entry.file and (place / one.file).exists()]
    for base in held[::-1][:_MOST_BASES]:
        # A damaged patch or base costs a request; the whole release is there still.
        with contextlib.suppress(BundleRefused, GatewayFailed):
            patch = _get(state, patch_name(base.file, entry.file), min(entry.bytes, PATCH_LIMIT_BYTES))
            if patch is None:
                continue
            tar = apply_patch(read_bounded(place / base.file, TAR_LIMIT_BYTES, refusal=BundleRefused), patch)
            if _is_promised(tar, entry):
                return tar, len(patch)
    return None


def _is_promised(tar: bytes, entry: Listed) -> bool:
    return f"{hashlib.sha256(tar).hexdigest()}.tar" == entry.file


def _keep(target: Path, tar: bytes, entry: Listed, trust: Path) -> None:
    """Nothing that does not verify stays under the release's name."""
    draft = target.with_name(f".{target.name}.new")
    write_atomically(draft, tar)
    try:
        manifest = read_bundle(draft, load_trust(trust)).manifest
        told = (manifest["study"], manifest["version"], release_digest(manifest))
        if told != (entry.study, entry.version, entry.digest):
            raise BundleRefused(
                "The release is another than the coordinator's list says: tell the coordinator."
            )
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _get(state: Path, name: str, limit_bytes: int) -> bytes | None:
    """A file of the coordinator's releases, or None where it is not there."""
    gateway = HospitalGateway.running(state)
    if gateway is None:
        raise GatewayFailed("This hospital's gateway does not run: start it with `fedward hospital up`.")
    trusted = ssl.create_default_context(cafile=str(gateway.certificate))
    connection = http.client.HTTPSConnection(LOOPBACK, gateway.port, timeout=_SECONDS, context=trusted)
    try:
        connection.request("GET", RELEASES_PATH + name)
        answer = connection.getresponse()
        data = answer.read(limit_bytes + 1)
    except (OSError, http.client.HTTPException) as error:
        raise GatewayFailed(f"The coordinator's releases cannot be fetched ({error}): try again.") from error
    finally:
        connection.close()
    if answer.status == http.client.NOT_FOUND:
        return None
    if answer.status != http.client.OK:
        raise GatewayFailed(
            f"The coordinator's gateway answers {answer.status}: run `fedward hospital doctor`."
        )
    if len(data) > limit_bytes:
        raise BundleRefused("More came than the coordinator's list promises: nothing was kept.")
    return data
