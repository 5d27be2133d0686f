"""A data set's name leads to one checked file, or to a substitute that says why."""

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedward.common.datasets import ImageDataset, save_npz
from fedward.common.errors import DatasetRefused, Refusal, SettingRefused, UnknownName
from fedward.common.medmnist_sets import MEDMNIST_SETS, MedMnistSet
from fedward.simulations import download, sources
from fedward.simulations.download import download_medmnist
from fedward.simulations.phantoms import make_phantoms
from fedward.simulations.sources import find_dataset

FEW = (20, 6, 6)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data and without a network; returns its current folder."""
    here = tmp_path / "project"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDWARD_DATA", raising=False)
    monkeypatch.setattr(sources, "_PROJECT", tmp_path / "elsewhere" / "project")

    def no_network(*_: object) -> Path:
        raise DatasetRefused("there is no network.")

    monkeypatch.setattr(sources, "download_medmnist", no_network)
    return here


@pytest.fixture(scope="module")
def small() -> ImageDataset:
    return make_phantoms(counts=FEW)


def put(path: Path, data: ImageDataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_npz(path, data)
    return path


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def official(tmp_path: Path, small: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The bytes that pass for PneumoniaMNIST's official file in a test."""
    path = put(tmp_path / "official.npz", small)
    known = MedMnistSet("binary", md5_of(path), ("normal", "pneumonia"))
    monkeypatch.setitem(MEDMNIST_SETS, "pneumoniamnist", known)
    return path.read_bytes()


def place(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("spec", ["auto", "pneumoniamnist"])
@pytest.mark.parametrize(
    "folder", ["own", "own/medmnist", "home/.medmnist", "shared/data/medmnist", "elsewhere/shared/data"]
)
def test_the_official_file_is_found_in_each_place(
    spec: str, folder: str, tmp_path: Path, official: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDWARD_DATA", f"/nonexistent:{tmp_path / 'own'}")
    place(tmp_path / folder / "pneumoniamnist.npz", official)
    data = find_dataset(spec)
    assert data.name == "pneumoniamnist"
    assert data.source.startswith("the official file")
    assert Path(data.source.rpartition(", ")[2]).resolve() == tmp_path / folder / "pneumoniamnist.npz"


def test_the_users_own_folder_comes_first(
    tmp_path: Path, official: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDWARD_DATA", str(tmp_path / "own"))
    for folder in ("own", "home/.medmnist", "shared/data"):
        place(tmp_path / folder / "pneumoniamnist.npz", official)
    assert str(tmp_path / "own") in find_dataset("auto").source


@pytest.mark.parametrize("spec", ["auto", "pneumoniamnist"])
def test_a_changed_official_file_is_refused_and_not_replaced_in_silence(
    spec: str, tmp_path: Path, official: bytes
) -> None:
    place(tmp_path / "home/.medmnist/pneumoniamnist.npz", official + b"\0")
    with pytest.raises(DatasetRefused, match="is not the official file"):
        find_dataset(spec)


def test_auto_without_data_or_network_gives_phantoms_and_says_why() -> None:
    data = find_dataset("auto")
    assert data.name == "phantom"
    assert data.source.startswith("synthetic phantoms, not patients")
    assert data.source.endswith("because pneumoniamnist is not on this machine, and there is no network")
    assert find_dataset("auto", size=32).train.images.shape[1:] == (32, 32, 1)


def test_a_name_without_data_or_network_is_refused_with_the_places_looked_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDWARD_DATA", "/data/of/mine")
    with pytest.raises(DatasetRefused, match=r"/data/of/mine.*\.medmnist.*shared/data.*no network"):
        find_dataset("breastmnist")
    with pytest.raises(DatasetRefused, match="FEDWARD_DATA"):
        find_dataset("mednist")


def test_mednist_is_found_by_its_size(tmp_path: Path, small: ImageDataset) -> None:
    put(tmp_path / "shared/data/mednist_28.npz", small)
    assert find_dataset("mednist").name == "mednist"
    with pytest.raises(DatasetRefused, match="of 64 pixels"):
        find_dataset("mednist", size=64)


def test_another_size_is_another_file(tmp_path: Path) -> None:
    put(tmp_path / "shared/data/medmnist/breastmnist_64.npz", make_phantoms(counts=FEW, size=64))
    assert find_dataset("breastmnist", size=64).train.images.shape[1:] == (64, 64, 1)
    put(tmp_path / "shared/data/medmnist/breastmnist_128.npz", make_phantoms(counts=FEW, size=64))
    with pytest.raises(SettingRefused, match="not of size 128"):
        find_dataset("breastmnist", size=128)


def test_a_path_names_any_npz(nowhere: Path, small: ImageDataset) -> None:
    put(nowhere / "scans.npz", small)
    for spec in ("scans.npz", "./scans.npz", str(nowhere / "scans.npz")):
        assert find_dataset(spec).classes == small.classes
    with pytest.raises(SettingRefused, match="not of size 64"):
        find_dataset("scans.npz", size=64)
    with pytest.raises(DatasetRefused, match="does not exist"):
        find_dataset("absent.npz")


def test_phantoms_take_settings() -> None:
    data = find_dataset("phantom-colour:classes=4,imbalance=10,seed=2,size=20,train=50,val=8,test=9")
    expected = make_phantoms("cell", 4, 10.0, 20, (50, 8, 9), 2)
    assert data.sha256 == expected.sha256
    assert find_dataset("phantom-findings").task == "multi-label"
    assert find_dataset("phantom", size=20).sha256 == make_phantoms(size=20).sha256


@pytest.mark.parametrize(
    ("spec", "refused", "says"),
    [
        ("phantom:sise=20", UnknownName, "there are classes, imbalance, seed, size"),
        ("phantom:size=big", SettingRefused, "must be a number"),
        ("phantom:size", SettingRefused, "must be a number"),
        ("phantom:seed=1.5", SettingRefused, "must be a number"),
        ("phantom:imbalance=nan", SettingRefused, "imbalance"),
        ("phantom:classes=7", SettingRefused, "classes"),
        ("pneumonia", UnknownName, "Did you mean pneumoniamnist?"),
        ("PneumoniaMNIST", UnknownName, "Did you mean pneumoniamnist?"),
        ("phantom-color", UnknownName, "Did you mean phantom-colour?"),
        ("qqq", UnknownName, "there are auto, phantom, "),
        ("", UnknownName, "there are auto, phantom, "),
        (".", DatasetRefused, "is a folder"),
        ("a\0b.npz", DatasetRefused, "a"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(spec: str, refused: type[Refusal], says: str) -> None:
    with pytest.raises(refused) as caught:
        find_dataset(spec)
    assert says in str(caught.value)


def test_two_sizes_are_a_contradiction() -> None:
    assert find_dataset("phantom:size=32", size=32).train.images.shape[1] == 32
    with pytest.raises(SettingRefused, match="contradicts"):
        find_dataset("phantom:size=32", size=64)


class Shelf(http.server.BaseHTTPRequestHandler):
    """Serves /good, cuts /cut short, never answers /slow, and has nothing else."""

    content = b""

    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            time.sleep(3)
        found = self.path.startswith(("/good", "/cut"))
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[:100] if "cut" in self.path else self.content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def shelf(official: bytes) -> Iterator[str]:
    Shelf.content = official
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def listed(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    address = (url, MEDMNIST_SETS["pneumoniamnist"].md5)
    monkeypatch.setattr(download, "_address", lambda *_: address)


def test_a_download_is_checked_stored_and_then_found(
    tmp_path: Path, shelf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, f"{shelf}/good/pneumoniamnist.npz?download=1")
    monkeypatch.setattr(sources, "download_medmnist", download_medmnist)
    assert "just downloaded to" in find_dataset("auto").source
    assert [path.name for path in (tmp_path / "home/.medmnist").iterdir()] == ["pneumoniamnist.npz"]
    assert "downloaded" not in find_dataset("auto").source


@pytest.mark.parametrize(
    ("page", "says"),
    [("cut", "not the official file"), ("absent", "404"), ("slow", "within 1 s"), ("unreachable", "refused")],
)
def test_a_failed_download_is_refused_and_leaves_nothing_behind(
    page: str, says: str, tmp_path: Path, shelf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = "http://127.0.0.1:1" if page == "unreachable" else shelf
    listed(monkeypatch, f"{server}/{page}/pneumoniamnist.npz")
    with pytest.raises(DatasetRefused, match=says):
        download_medmnist("pneumoniamnist", 28, tmp_path / "into", 1 if page == "slow" else 20)
    assert list((tmp_path / "into").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetRefused, match="cannot be stored"):
        download_medmnist("pneumoniamnist", 28, tmp_path / "file" / "folder", 1)


def test_addresses_and_digests_are_those_that_medmnist_lists() -> None:
    for name, known in MEDMNIST_SETS.items():
        url, md5 = download._address(name, 28)
        assert url.startswith("https://")
        assert f"/{name}.npz" in url
        assert md5 == known.md5
    assert "pneumoniamnist_64.npz" in download._address("pneumoniamnist", 64)[0]
    with pytest.raises(DatasetRefused, match="another size"):
        download._address("pneumoniamnist", 30)


def test_the_real_table_of_classes_is_as_long_as_medmnists() -> None:
    for name, listed_set in download._medmnist_info().items():
        if not name.endswith("3d"):
            assert len(MEDMNIST_SETS[name].classes) == len(np.unique(list(listed_set["label"])))
