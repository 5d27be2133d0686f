"""A finished study's release is signed by the coordinator, stands in the index, and costs what it says."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedward.client.charging import DATASET
from fedward.client.registry import Registry
from fedward.common.bundle import pack_tar, read_bundle
from fedward.common.config import LocalSettings, Study
from fedward.common.errors import CheckpointRefused, OutputRefused
from fedward.common.files import canonical_json
from fedward.common.instants import utc_now
from fedward.common.manifest import release_digest
from fedward.common.patch import apply_patch
from fedward.common.release_index import INDEX, Listed, listed, patch_name
from fedward.server.coordinator import Coordinator
from fedward.server.publishing import publish, site_costs
from fedward.server.shelf import published, put
from fedward.server.study_folder import PUBLISHED, StudyFolder
from fedward.simulations.federation import run_in_process


@pytest.fixture
def coordinator(tmp_path: Path, make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(tmp_path / "c")


@pytest.fixture
def finished(
    tmp_path: Path,
    flower_node: None,
    make_federation: Callable[..., StudyFolder],
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
) -> StudyFolder:
    folder = make_federation(tmp_path / "s", make_study(make_local(rounds=2), (30, 50)))
    run_in_process(folder.path, 2)
    return folder


def test_a_release_is_listed_once_with_the_bytes_that_its_name_promises(
    finished: StudyFolder, coordinator: Coordinator
) -> None:
    entries = [publish(coordinator, finished, utc_now()) for _ in range(2)]
    assert [one.file for one in published(coordinator)] == [entries[0].file] == [entries[1].file]
    tar = coordinator.folder / "releases" / entries[0].file
    bundle = read_bundle(tar, [coordinator.signer(utc_now()).public()])
    assert (bundle.manifest["study"], tar.stat().st_size) == ("tiny study", entries[0].bytes)
    assert (finished.path / PUBLISHED).exists()


def test_what_the_release_says_that_it_cost_is_what_the_sites_own_ledgers_say(finished: StudyFolder) -> None:
    ledgers = [finished.path / "hospitals" / str(number) / "budget" for number in range(2)]
    told = [site.epsilon for site in site_costs(finished.study())]
    assert told == pytest.approx([Registry(ledger).budget(DATASET).spent() for ledger in ledgers], rel=1e-9)


def test_latents_that_the_rounds_did_not_give_are_not_released(
    finished: StudyFolder, coordinator: Coordinator
) -> None:
    data = bytearray(finished.final.read_bytes())
    data[-1] ^= 1
    finished.final.write_bytes(data)
    with pytest.raises(CheckpointRefused, match="rounds"):
        publish(coordinator, finished, utc_now())
    assert published(coordinator) == []
    assert not finished.release.exists()


def test_a_damaged_index_is_refused_and_not_written_over(
    finished: StudyFolder, coordinator: Coordinator
) -> None:
    index = coordinator.folder / "releases" / INDEX
    index.write_bytes(b"{")
    with pytest.raises(OutputRefused, match=INDEX):
        publish(coordinator, finished, utc_now())
    assert index.read_bytes() == b"{"


def _shelved(
    coordinator: Coordinator, make_release: Callable[..., Path], place: Path, parent: str | None, **told: Any
) -> tuple[Listed, bytes]:
    path = make_release(place, by=coordinator.signer(utc_now()), **told)
    tar = pack_tar(path)
    manifest = read_bundle(path, [coordinator.signer(utc_now()).public()]).manifest
    name = f"{hashlib.sha256(tar).hexdigest()}.tar"
    entry = Listed(told["study"], told["version"], release_digest(manifest), name, len(tar), "t")
    put(coordinator, entry, tar, parent)
    return entry, tar


def test_beside_a_release_stand_patches_from_its_studys_newest_and_from_its_parent(
    coordinator: Coordinator, make_release: Callable[..., Path], tmp_path: Path
) -> None:
    made: list[tuple[Listed, bytes]] = []
    for study, version, continues in (("a", 1, None), ("a", 2, 0), ("b", 1, None), ("b", 2, 0)):
        parent = None if continues is None else made[continues][0].digest
        place = tmp_path / f"{study}{version}"
        made.append(_shelved(coordinator, make_release, place, parent, study=study, version=version))
    folder = coordinator.folder / "releases"
    wanted = {patch_name(made[i][0].file, made[j][0].file): (i, j) for i, j in ((0, 1), (0, 3), (2, 3))}
    assert {path.name for path in folder.glob("*.patch")} == set(wanted)
    for name, (i, j) in wanted.items():
        assert apply_patch(made[i][1], (folder / name).read_bytes()) == made[j][1]


def test_a_release_is_published_where_no_patch_can_be_made(
    coordinator: Coordinator, make_release: Callable[..., Path], tmp_path: Path
) -> None:
    gone, _ = _shelved(coordinator, make_release, tmp_path / "1", None, study="a", version=1)
    (coordinator.folder / "releases" / gone.file).unlink()
    _shelved(coordinator, make_release, tmp_path / "2", None, study="a", version=2)
    _shelved(
        coordinator, make_release, tmp_path / "3", None, study="a", version=3, classes=["x", "y", "z"],
        task="multi-class",
        decision={"rule": "argmax", "thresholds": [], "prior": "balanced", "source": "default"},
    )  # fmt: skip
    assert [one.version for one in published(coordinator)] == [1, 2, 3]
    assert not list((coordinator.folder / "releases").glob("*.patch"))


@pytest.mark.parametrize(
    "file", ["../sites.json", "a.tar", "/etc/passwd", f"{'a' * 64}.tar\n", f"{'A' * 64}.tar"]
)
def test_an_index_cannot_name_a_file_elsewhere(file: str) -> None:
    with pytest.raises(ValueError, match="not what it must be"):
        Listed("s", 1, "d", file, 3, "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "changed", [{"bytes": -2}, {"bytes": True}, {"version": "1"}, {"study": 3}, {"digest": None}, {"file": 1}]
)
def test_an_entry_with_a_value_that_none_has_is_refused(changed: dict[str, object]) -> None:
    entry = {
        "study": "s",
        "version": 1,
        "digest": "d",
        "file": f"{'a' * 64}.tar",
        "bytes": 3,
        "published": "t",
    }
    assert listed(canonical_json({"releases": [entry]}))[0].bytes == 3
    with pytest.raises(ValueError, match="not what it must be"):
        listed(canonical_json({"releases": [{**entry, **changed}]}))


@pytest.mark.parametrize("data", [b"", b"[]", b'{"releases":[{}]}', b'{"releases":3}', b'{"a": 1}'])
def test_what_is_no_index_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        listed(data)
