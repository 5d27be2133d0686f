"""Releases where a coordinator's sites can fetch them: ``releases/`` of its folder, which the gateway serves.

    <SHA-256 of the tar, in hex>.tar    the signed bundle, in the one way in which a bundle is packed
    index.json                          what there is, oldest first, so that no folder has to be listed:
        {"schema": 1, "releases": [{"study", "version", "digest", "file", "bytes", "published"}, ...]}

A tar is written before the index names it, and each appears whole or not at all. The index is not signed:
what it says of a release is compared with the release, whose signatures count.
"""

from fedward.common.errors import OutputRefused
from fedward.common.files import canonical_json, read_bounded, write_atomically
from fedward.common.release_index import INDEX, INDEX_LIMIT_BYTES, Listed, listed
from fedward.server.coordinator import RELEASES, Coordinator


def put(coordinator: Coordinator, entry: Listed, tar: bytes) -> None:
    """Add a release as the newest. Whoever calls holds the coordinator's lock.

    Raises:
        OutputRefused: the index is damaged, or something cannot be written.
    """
    kept = [one for one in published(coordinator) if one.file != entry.file]
    folder = coordinator.folder / RELEASES
    write_atomically(folder / entry.file, tar)
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
