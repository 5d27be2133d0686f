"""Going on from a release, the run's folder, and the sample image that the demo shows."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from PIL import Image

from fedward.common.bundle import read_bundle, write_bundle
from fedward.common.errors import BundleRefused, CheckpointRefused, DatasetRefused, OutputRefused
from fedward.common.manifest import MODEL
from fedward.common.signing import Signer, ensure_default_keys
from fedward.common.trust import load_trust, write_trust
from fedward.server.export import latents_of
from fedward.simulations import sample_image, simulate
from fedward.simulations.options import Options
from fedward.simulations.prepare import prepare, reopen

DATA = "phantom:train=60,val=30,test=40"
SMALL = Options(dataset=DATA, hospitals=2, rounds=1, epsilon=None)
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(fedward: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    done = fedward("simulate", "--dataset", DATA, "--hospitals", 2, "--rounds", 1, "--epsilon", "none",
                   "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    return Path(out)


@pytest.fixture
def go_on(fedward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """go_on(release, *options): a study that continues it; one that reaches the first round fails."""
    monkeypatch.setattr(simulate, "run_in_process", lambda *_: pytest.fail("training began"))

    def run(release: Path, *options: object) -> Any:
        base = ("simulate", "--dataset", DATA, "--hospitals", 2, "--rounds", 1, "--epsilon", "none")
        return fedward(*base, "--out", tmp_path / "out", "--continue-from", release, *options)

    return run


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        (["--student", "int8-cnn"], "BundleRefused", ["ternary-cnn", "int8-cnn"]),
        (["--student", "ternary-depthwise"], "BundleRefused", ["ternary-cnn", "ternary-depthwise"]),
        (
            ["--dataset", "phantom-findings:train=60,val=30,test=40"],
            "BundleRefused",
            ["no lesion", "effusion"],
        ),
        (["--dataset", DATA + ",size=56"], "BundleRefused", ["28 x 28 pixels", "56 x 56 pixels"]),
        (["--ewc-lambda", "1", "--ewc-reference", "phantom:size=32"], "DatasetRefused", ["32 x 32"]),
        (["--ewc-lambda", "1", "--ewc-reference", "phantom-findings"], "DatasetRefused", ["multi-label"]),
        (["--ewc-lambda", "1", "--ewc-reference", "nonsense"], "UnknownName", ["nonsense"]),
        (["--prune", "0.9"], "SettingRefused", ["empty layers", "0.75"]),
        (["--trust", "/nowhere.json"], "TrustRefused", ["/nowhere.json"]),
    ],
)
def test_a_release_that_does_not_fit_is_refused_before_the_first_round(
    go_on: Command, finished: Path, tmp_path: Path, options: list[str], name: str, words: list[str]
) -> None:
    done = go_on(finished / "release", *options)
    assert done.code == 1
    line = done.err.splitlines()[-1]
    assert line.startswith(f"{name}: "), line
    assert [word for word in words if word not in line] == [], line
    assert not (tmp_path / "out").exists()


def test_a_damaged_or_missing_release_is_refused(go_on: Command, finished: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "model.onnx.zst", "golden.npz", "signatures.json"):
        copy = shutil.copytree(finished / "release", tmp_path / name)
        (copy / name).write_bytes((copy / name).read_bytes()[:-1])
        assert "SignatureRefused: " in go_on(copy).err
    assert "BundleRefused: " in go_on(tmp_path / "none").err
    assert "BundleRefused: " in go_on(finished).err  # the run's folder is not its release
    assert not (tmp_path / "out").exists()


def test_a_release_by_another_signer_is_refused_until_its_trust_file_is_named(
    go_on: Command, finished: Path, tmp_path: Path, stranger: Signer
) -> None:
    bundle = read_bundle(finished / "release", load_trust())
    unsigned = {key: value for key, value in bundle.manifest.items() if key != "files"}
    theirs = write_bundle(tmp_path / "theirs", unsigned, bundle.files, stranger)
    assert "SignatureRefused: " in go_on(theirs).err
    write_trust(tmp_path / "trust.json", [stranger.public()])
    with pytest.raises(pytest.fail.Exception, match="training began"):
        go_on(theirs, "--trust", tmp_path / "trust.json")


@pytest.mark.parametrize("graph", [b"\x00", b"not an onnx file at all" * 9])
def test_a_signed_release_without_the_students_weights_is_refused(
    fedward: Command, finished: Path, tmp_path: Path, graph: bytes
) -> None:
    bundle = read_bundle(finished / "release", load_trust())
    manifest = {key: value for key, value in bundle.manifest.items() if key != "files"}
    size = {"format": "onnx+zstd", "sha256": _sha256(graph), "size": len(graph)}
    files = {**bundle.files, MODEL: zstandard.compress(graph)}
    odd = write_bundle(tmp_path / "odd", manifest | {"model": size}, files, ensure_default_keys())
    with pytest.raises(BundleRefused, match="does not hold the weights of a ternary-cnn"):
        prepare(replace(SMALL, continue_from=str(odd)), tmp_path / "out", None)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_continued_study_starts_from_the_released_weights_to_the_bit(
    fedward: Command, finished: Path, tmp_path: Path
) -> None:
    run = prepare(replace(SMALL, continue_from=str(finished / "release")), tmp_path / "out", None)
    study = run.folder.study()
    with np.load(run.folder.fixed) as fixed:
        raw = zstandard.decompress((finished / "release" / MODEL).read_bytes(), max_output_size=1 << 24)
        assert fixed["start"].tobytes() == latents_of(raw, study.local).tobytes()
    assert study.version == 2


def test_what_was_prepared_is_what_is_opened_again(fedward: Command, tmp_path: Path) -> None:
    prepared = prepare(SMALL, tmp_path / "out", None)
    opened = reopen(tmp_path / "out")
    assert opened.options == prepared.options
    assert opened.dataset.sha256 == prepared.dataset.sha256
    assert opened.dataset.source == prepared.dataset.source
    assert opened.reference is not None
    assert prepared.reference is not None
    assert (opened.reference.images == prepared.reference.images).all()
    assert [len(site.images) for site in opened.hospitals] == [30, 30]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "hospitals", "reference.npz", "simulation.json", "study.json",
    ]  # fmt: skip


def test_an_earlier_broken_start_in_the_folder_is_not_mixed_with_a_new_one(
    fedward: Command, tmp_path: Path
) -> None:
    prepare(SMALL, tmp_path / "out", None)
    (tmp_path / "out" / "simulation.json").unlink()
    with pytest.raises(CheckpointRefused):
        reopen(tmp_path / "out")
    with pytest.raises(OutputRefused, match="holds hospitals already"):
        prepare(replace(SMALL, hospitals=3), tmp_path / "out", None)


def test_what_makes_a_folder_a_run_is_moved_into_it_last(
    fedward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, moved = Path.rename, []

    def noted(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".draft-"):
            moved.append(self.name)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", noted)
    prepare(SMALL, tmp_path / "out", None)
    assert len(moved) == 4
    assert moved[-1] == "simulation.json"


def test_reference_data_of_one_image_are_refused(fedward: Command, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for split, count in (("train", 12), ("val", 1), ("test", 4)):
        arrays[f"{split}_images"] = np.zeros((count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    np.savez(tmp_path / "one.npz", **arrays)
    with pytest.raises(DatasetRefused, match="at least two images"):
        prepare(replace(SMALL, reference=str(tmp_path / "one.npz")), tmp_path / "out", None)


@pytest.mark.parametrize(("name", "mode"), [("phantom", "L"), ("phantom-colour", "RGB")])
def test_the_sample_is_the_first_test_image(fedward: Command, tmp_path: Path, name: str, mode: str) -> None:
    run = prepare(replace(SMALL, dataset=f"{name}:train=60,val=30,test=40"), tmp_path / "out", None)
    assert sample_image.main([str(tmp_path / "out"), str(tmp_path / "s.png")]) == 0
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.mode == mode
        pixels = np.asarray(picture).reshape(run.dataset.test.images[0].shape)
    assert (pixels == run.dataset.test.images[0]).all()


def test_the_sample_program_refuses_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample_image.main([str(tmp_path), str(tmp_path / "s.png")]) == 1
    assert capsys.readouterr().err.startswith("CheckpointRefused: ")
    assert sample_image.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("Usage: ")
    assert list(tmp_path.iterdir()) == []


def test_a_start_is_written_in_plain_json(fedward: Command, tmp_path: Path) -> None:
    prepare(SMALL, tmp_path / "out", None)
    start = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert start["options"]["dataset"] == DATA
    assert start["dataset_source"].startswith("synthetic phantoms")
