"""What a hospital fetches is kept only where the coordinator signed it and its list told of it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedward.client import fetching as module
from fedward.common.bundle import pack_tar, read_bundle
from fedward.common.files import canonical_json
from fedward.common.instants import utc_now
from fedward.common.manifest import release_digest
from fedward.common.patch import make_patch
from fedward.common.release_index import INDEX, Listed, patch_name
from fedward.common.signing import Signer
from fedward.server.coordinator import Coordinator


@dataclass
class Shelf:
    """A coordinator's releases, as its gateway would serve them, and a site that fetches them."""

    state: Path
    make: Callable[..., Path]
    signer: Signer
    folder: Path
    entries: list[Listed] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def get(self, state: Path, name: str, limit: int) -> bytes | None:
        self.asked.append(name)
        if name == INDEX:
            return canonical_json({"schema": 1, "releases": [one.__dict__ for one in self.entries]})
        return self.files.get(name)

    def add(self, study: str, version: int, by: Signer | None = None) -> Listed:
        place = self.make(
            self.folder / f"{study}{version}", by=by or self.signer, study=study, version=version
        )
        tar = pack_tar(place)
        digest = release_digest(read_bundle(place, [(by or self.signer).public()]).manifest)
        name = f"{hashlib.sha256(tar).hexdigest()}.tar"
        self.entries.append(Listed(study, version, digest, name, len(tar), "2026-01-01T00:00:00Z"))
        self.files[name] = tar
        return self.entries[-1]


@pytest.fixture
def shelf(
    tmp_path: Path,
    make_coordinator: Callable[..., Coordinator],
    join_federation: Callable[..., Any],
    make_release: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Shelf:
    coordinator = make_coordinator(tmp_path / "c")
    member = join_federation(coordinator, tmp_path / "h", "a")
    found = Shelf(member.state, make_release, coordinator.signer(utc_now()), tmp_path)
    monkeypatch.setattr(module, "_get", found.get)
    return found


def _kept(shelf: Shelf) -> set[str]:
    return {path.name for path in (shelf.state / "releases").glob("*")} - {"trust.json"}


def test_the_newest_release_of_a_study_is_kept_with_the_keys_that_it_verifies_with(
    shelf: Shelf, fedward: Callable[..., Any]
) -> None:
    shelf.add("lungs", 1)
    newest, other = shelf.add("lungs", 2), shelf.add("hearts", 1)
    fetched = fedward("hospital", "fetch", "lungs", "--state", shelf.state)
    assert (fetched.code, _kept(shelf)) == (0, {newest.file})
    place = shelf.state / "releases"
    assert fedward("bundle", "verify", place / newest.file, "--trust", place / "trust.json").code == 0
    assert fedward("hospital", "fetch", "--state", shelf.state).code == 0
    assert _kept(shelf) == {newest.file, other.file}


def test_a_changed_byte_is_refused_and_nothing_is_kept(shelf: Shelf, fedward: Callable[..., Any]) -> None:
    entry = shelf.add("lungs", 1)
    shelf.files[entry.file] = shelf.files[entry.file][:-1] + b"\x01"
    assert fedward("hospital", "fetch", "--state", shelf.state).err.startswith("BundleRefused")
    assert _kept(shelf) == set()


def test_a_release_that_somebody_else_signed_is_refused_and_nothing_is_kept(
    shelf: Shelf, stranger: Signer, fedward: Callable[..., Any]
) -> None:
    shelf.add("lungs", 1, by=stranger)
    assert fedward("hospital", "fetch", "--state", shelf.state).err.startswith("SignatureRefused")
    assert _kept(shelf) == set()


def test_an_older_release_under_a_newer_ones_entry_is_refused(
    shelf: Shelf, fedward: Callable[..., Any]
) -> None:
    entry = shelf.add("lungs", 1)
    shelf.entries = [dataclasses.replace(entry, version=2)]
    assert "another than the coordinator's list" in fedward("hospital", "fetch", "--state", shelf.state).err
    assert _kept(shelf) == set()


@pytest.fixture
def patched(shelf: Shelf, fedward: Callable[..., Any]) -> str:
    """A site that holds version 1, where there is a patch from it to version 2; the patch's name."""
    first = shelf.add("lungs", 1)
    assert fedward("hospital", "fetch", "--state", shelf.state).code == 0
    second = shelf.add("lungs", 2)
    name = patch_name(first.file, second.file)
    shelf.files[name] = make_patch(shelf.files[first.file], shelf.files[second.file])
    return name


def _fetch_newest(shelf: Shelf, fedward: Callable[..., Any]) -> dict[str, Any]:
    """Fetches; what is kept is the newest release, whole, whatever came of the patch."""
    shelf.asked.clear()
    told = fedward("hospital", "fetch", "--state", shelf.state, "--json")
    assert told.code == 0, told.err
    newest = shelf.entries[-1]
    assert (shelf.state / "releases" / newest.file).read_bytes() == shelf.files[newest.file]
    return dict(json.loads(told.out))


def test_a_site_that_holds_the_release_before_fetches_a_patch_alone(
    shelf: Shelf, patched: str, fedward: Callable[..., Any]
) -> None:
    told = _fetch_newest(shelf, fedward)
    assert shelf.asked == [INDEX, patched]
    assert told["bytes"] == len(shelf.files[patched]) < shelf.entries[-1].bytes


@pytest.mark.parametrize(
    "damage", ["no patch", "cut patch", "patch for another", "patch to another", "damaged base", "no base"]
)
def test_what_is_wrong_with_a_patch_costs_bytes_and_not_the_release(
    shelf: Shelf, patched: str, fedward: Callable[..., Any], damage: str
) -> None:
    first, second = shelf.entries
    base = shelf.state / "releases" / first.file
    if damage == "no patch":
        del shelf.files[patched]
    elif damage == "cut patch":
        shelf.files[patched] = shelf.files[patched][:-9]
    elif damage == "patch for another":
        shelf.files[patched] = make_patch(shelf.files[second.file], shelf.files[first.file])
    elif damage == "patch to another":
        shelf.files[patched] = make_patch(shelf.files[first.file], shelf.files[first.file])
    elif damage == "damaged base":
        base.write_bytes(b"x" + base.read_bytes()[1:])
    else:
        base.unlink()
    assert _fetch_newest(shelf, fedward)["bytes"] == second.bytes


def test_a_patch_to_what_nobody_signed_keeps_nothing(
    shelf: Shelf, stranger: Signer, fedward: Callable[..., Any]
) -> None:
    first = shelf.add("lungs", 1)
    assert fedward("hospital", "fetch", "--state", shelf.state).code == 0
    second = shelf.add("lungs", 2, by=stranger)
    shelf.files[patch_name(first.file, second.file)] = make_patch(
        shelf.files[first.file], shelf.files[second.file]
    )
    assert fedward("hospital", "fetch", "--state", shelf.state).err.startswith("SignatureRefused")
    assert _kept(shelf) == {first.file}


def test_what_there_is_not_is_named_with_what_there_is(shelf: Shelf, fedward: Callable[..., Any]) -> None:
    shelf.add("lungs", 1)
    refused = fedward("hospital", "fetch", "hearts", "--state", shelf.state)
    assert (refused.code, "those of lungs" in refused.err) == (1, True)


def test_a_hospital_that_is_down_is_told_to_come_up(
    tmp_path: Path,
    make_coordinator: Callable[..., Coordinator],
    join_federation: Callable[..., Any],
    fedward: Callable[..., Any],
) -> None:
    member = join_federation(make_coordinator(tmp_path / "c"), tmp_path / "h", "a")
    assert "fedward hospital up" in fedward("hospital", "fetch", "--state", member.state).err
