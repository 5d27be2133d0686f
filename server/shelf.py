"""Releases where a coordinator's sites can fetch them: ``releases/`` of its folder, which the gateway serves.

    <SHA-256 of the tar, in hex>.tar    the signed bundle, in the one way in which a bundle is packed
    <of one tar>-<of a later one>.patch what makes the later one of the other (`fedward.common.patch`): for
                                        the newest of the same study and for the release it continues
    index.json                          what there is, oldest first, so that no folder has to be listed:
        {"schema": 1, "releases": [{"study", "version", "digest", "file", "bytes", "published"}, ...]}

A tar and its patches are written before the index names it, and each appears whole or not at all. The index
is not signed: what it says of a release is compared with the release, whose signatures count.
"""

from pathlib import Path

from fedward.common.bundle import TAR_LIMIT_BYTES
from fedward.common.errors import BundleRefused, OutputRefused
from fedward.common.files import canonical_json, read_bounded, write_atomically
from fedward.common.patch import make_patch
from fedward.common.release_index import INDEX, INDEX_LIMIT_BYTES, Listed, listed, patch_name
from fedward.server.coordinator import RELEASES, Coordinator


def put(coordinator: Coordinator, entry: Listed, tar: bytes, parent: str | None = None) -> None:
    """Add a release as the newest, with patches; `parent` is the digest of the one that it continues.

    Whoever calls holds the coordinator's lock.

    Raises:
        OutputRefused: the index is damaged, or something cannot be written.
    """
    kept = [one for one in published(coordinator) if one.file != entry.file]
    folder = coordinator.folder / RELEASES
    write_atomically(folder / entry.file, tar)
    for base in _bases(kept, entry, parent):
        _put_patch(folder, base, entry, tar)
    releases = [one.__dict__ for one in (*kept, entry)]
    write_atomically(folder / INDEX, canonical_json({"schema": 1, "releases": releases}))


def published(coordinator: Coordinator) -> list[Listed]:
    """What there is, oldest first.

    Raises:
        OutputRefused: the index is damaged.
    """
    path = coordinator.folder / RELEASES / INDEX
    if not path.exists():
        return []
    try:
        return listed(read_bounded(path, INDEX_LIMIT_BYTES, refusal=OutputRefused))
    except ValueError as error:
        raise OutputRefused(f"{path} is damaged: put back its newest copy.") from error


def _bases(kept: list[Listed], entry: Listed, parent: str | None) -> list[Listed]:
    """What a site that wants `entry` is likely to hold."""
    same_study = [one for one in kept if one.study == entry.study][-1:]
    return same_study + [one for one in kept if one.digest == parent and one not in same_study][-1:]


def _put_patch(folder: Path, base: Listed, entry: Listed, tar: bytes) -> None:
    try:
        patch = make_patch(read_bounded(folder / base.file, TAR_LIMIT_BYTES, refusal=BundleRefused), tar)
    except BundleRefused:  # another student, or the old tar is gone: sites then fetch the whole release
        return
    if len(patch) < len(tar):
        write_atomically(folder / patch_name(base.file, entry.file), patch)
