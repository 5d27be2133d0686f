"""`fedward simulate` and what is wrong: one named sentence, exit code 1, nothing half-written."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client import hospital
from fedward.common.files import write_atomically
from fedward.common.signing import ensure_default_keys
from fedward.simulations import prepare as preparing
from fedward.simulations import run_folder, simulate

DATA = "phantom:train=60,val=30,test=40"
NONE = Path("/nowhere-at-all")
Command = Callable[..., Any]


@pytest.fixture
def start(fedward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """start(*options) -> the command's end; a test that reaches the first round fails."""

    def never(*_: object) -> None:
        pytest.fail("training began")

    monkeypatch.setattr(simulate, "run_in_process", never)
    monkeypatch.setattr(simulate, "run_on_ray", never)
    monkeypatch.setattr(preparing, "train_plainly", never)

    def run(*options: object) -> Any:
        base = ("simulate", "--dataset", DATA, "--hospitals", 3, "--rounds", 2, "--out", tmp_path / "out")
        return fedward(*base, *options)

    return run


def refused(done: Any, name: str, *words: str) -> None:
    """One line of the form `Name: sentence`, and all the words in it."""
    assert done.code == 1, done
    assert done.out == ""
    line = done.err.splitlines()[-1]
    assert re.fullmatch(rf"{name}: [^\n]{{10,600}}[.?]", line), line
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        (["--dataset", "pnumoniamnist"], "UnknownName", ["phantom", "chestmnist", "mean pneumoniamnist?"]),
        (["--dataset", NONE / "x.npz"], "DatasetRefused", ["does not exist"]),
        (["--dataset", "phantom:train=60,val=30,test=1"], "SettingRefused", ["at least 2"]),
        (["--student", "binary-cnn"], "UnknownName", ["ternary-cnn", "fp32-depthwise"]),
        (["--partition", "random"], "UnknownName", ["iid", "dirichlet:A", "size:P", "scanner"]),
        (["--partition", "dirichlet"], "SettingRefused", ["dirichlet:NUMBER"]),
        (["--partition", "dirichlet:nan"], "SettingRefused", ["dirichlet:NUMBER"]),
        (["--engine", "spark"], "UnknownName", ["inproc", "ray"]),
        (["--uplink", "zip"], "UnknownName", ["uplink codec", "fp32", "int8"]),
        (["--downlink", "zip"], "UnknownName", ["downlink codec", "fp32", "int8"]),
        (["--uplink-codec", "zip"], "UnknownName", ["uplink codec", "coded8", "coded4", "coded3", "coded2"]),
        (["--downlink-codec", "coded4"], "UnknownName", ["downlink codec", "fp32", "int8", "diff4", "diff3"]),
        (["--uplink-codec", "diff4"], "UnknownName", ["uplink codec", "fp32", "int8", "coded4"]),
        (["--uplink-codec", "coded4", "--epsilon", "none"], "SettingRefused", ["--uplink-codec", "noise"]),
        (["--decision", "best"], "UnknownName", ["balanced", "calibrated"]),
        (["--schedule", "step"], "UnknownName", ["constant", "cosine"]),
        (["--teacher", "chatty"], "UnknownName", ["none", "reference"]),
        (["--prior", "uniform"], "UnknownName", ["reference", "none"]),
        (["--augmentation", "mixup"], "UnknownName", ["shift", "affine"]),
        (["--epsilon", "0"], "SettingRefused", ["0.001", "none"]),
        (["--epsilon", "-1"], "SettingRefused", ["-1"]),
        (["--epsilon", "nan"], "SettingRefused", ["nan"]),
        (["--epsilon", "inf"], "SettingRefused", ["inf"]),
        (["--epsilon", "abc"], "SettingRefused", ["'abc'", "none"]),
        (["--delta", "0"], "SettingRefused", ["delta"]),
        (["--hospitals", "0"], "SettingRefused", ["1 to 10,000"]),
        (["--hospitals", "61"], "SettingRefused", ["60 images", "61 hospitals"]),
        (["--rounds", "0"], "SettingRefused", ["rounds"]),
        (["--local-steps", "0"], "SettingRefused", ["local_steps"]),
        (["--seed", "-1"], "SettingRefused", ["seed"]),
        (["--seed", str(2**70)], "SettingRefused", ["seed"]),
        (["--quorum", "4"], "SettingRefused", ["--quorum", "3"]),
        (["--quorum", "0"], "SettingRefused", ["--quorum", "0"]),
        (["--sample-rate", "1.5"], "SettingRefused", ["sample_rate"]),
        (["--learning-rate", "nan"], "SettingRefused", ["learning_rate"]),
        (["--server-momentum", "1"], "SettingRefused", ["server_momentum"]),
        (["--averaged-rounds", "0"], "SettingRefused", ["averaged_rounds"]),
        (["--round-timeout", "nan"], "SettingRefused", ["round_timeout"]),
        (["--views", "0"], "SettingRefused", ["views"]),
        (["--views", "2", "--augmentation", "none"], "SettingRefused", ["--augmentation", "the same"]),
        (["--reference", "nonsense"], "UnknownName", ["phantom"]),
        (["--reference", "phantom-colour"], "DatasetRefused", ["colour", "grey"]),
        (["--reference", "phantom-findings"], "DatasetRefused", ["multi-label", "binary"]),
        (["--reference", "none", "--decision", "calibrated"], "SettingRefused", ["--reference none"]),
        (["--reference", "none", "--teacher", "reference"], "SettingRefused", ["--reference none"]),
        (["--teacher", "reference", "--distillation-alpha", "0"], "SettingRefused", ["above 0"]),
        (["--teacher", "reference", "--distillation-alpha", "2"], "SettingRefused", ["distillation_alpha"]),
        (["--distillation-alpha", "0.5"], "SettingRefused", ["--teacher reference"]),
        (["--distillation-temperature", "3"], "SettingRefused", ["--teacher reference"]),
        (["--ewc-lambda", "0.3"], "SettingRefused", ["--continue-from"]),
        (["--ewc-lambda", "-1"], "SettingRefused", ["ewc_lambda"]),
        (["--ewc-reference", "phantom"], "SettingRefused", ["--ewc-lambda"]),
        (["--trust", NONE], "SettingRefused", ["--continue-from"]),
        (["--prune", "0.3"], "SettingRefused", ["--continue-from"]),
        (["--student", "int8-cnn", "--model-bytes", "9000"], "SettingRefused", ["--continue-from"]),
        (["--model-bytes", "9000", "--continue-from", NONE], "SettingRefused", ["int8", "ternary-cnn"]),
        (["--prune", "1", "--continue-from", NONE], "SettingRefused", ["--prune", "below 1"]),
        (["--prune", "nan", "--continue-from", NONE], "SettingRefused", ["--prune", "below 1"]),
        (["--prune", "-0.1", "--continue-from", NONE], "SettingRefused", ["--prune", "below 1"]),
        (["--prune", "0.3", "--continue-from", NONE, "--reference", "none"], "SettingRefused", ["--prune"]),
        (
            ["--continue-from", NONE, "--ewc-lambda", "1", "--reference", "none"],
            "SettingRefused",
            ["--ewc-reference"],
        ),
        # What no hospital's update would survive is known before the first round.
        (["--learning-rate", "10000"], "SettingRefused", ["learning rate", "noise"]),
        (
            ["--max-grad-norm", "1000000", "--learning-rate", "1"],
            "SettingRefused",
            ["max-grad-norm", "noise"],
        ),
        (["--epsilon", "0.001", "--learning-rate", "1"], "SettingRefused", ["raise epsilon"]),
    ],
)
def test_what_is_wrong_is_said_before_the_first_round(
    start: Command, tmp_path: Path, options: list[object], name: str, words: list[str]
) -> None:
    refused(start(*options), name, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--rounds", "many"],
        ["--hospitals", "2.5"],
        ["--nonsense"],
        ["more"],
        ["--learning-rate", ""],
    ],
)
def test_wrong_usage_exits_with_2(start: Command, tmp_path: Path, options: list[str]) -> None:
    done = start(*options)
    assert done.code == 2
    assert "Usage" in done.err
    assert not (tmp_path / "out").exists()


def arrays(**changes: Any) -> dict[str, Any]:
    draws, found = np.random.default_rng(0), dict[str, Any]()
    for split, count in (("train", 20), ("val", 8), ("test", 8)):
        found[f"{split}_images"] = draws.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        found[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    return {key: value for key, value in (found | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_images": None}, ["test_images", "all of train, val and test"]),
        ({"val_images": None, "val_labels": None}, ["val_images, val_labels"]),
        ({"train_labels": np.full((20, 1), -1)}, ["out of range"]),
        ({"test_labels": np.arange(8)[:, None] + 5}, ["out of range"]),
        ({"test_labels": np.arange(7)[:, None] % 2}, ["8 images", "7 labels"]),
        ({"val_images": np.zeros((8, 32, 32), np.uint8)}, ["another size"]),
        ({"train_images": np.zeros((20, 28, 28), np.float32)}, ["uint8", "float32"]),
        ({"train_images": np.zeros((20, 28, 28, 4), np.uint8)}, ["(20, 28, 28, 4)"]),
        ({"train_images": np.zeros((0, 28, 28), np.uint8), "train_labels": np.zeros((0, 1), int)}, ["empty"]),
        ({"train_labels": np.ones((20, 1), int)}, ["the same"]),
        ({"val_images": np.zeros((1, 28, 28), np.uint8), "val_labels": np.ones((1, 1), int)}, ["two images"]),
    ],
)
def test_a_bad_data_set_is_refused(
    start: Command, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays(**changes))
    refused(start("--dataset", tmp_path / "bad.npz"), "DatasetRefused", *words)
    assert not (tmp_path / "out").exists()


def test_images_too_small_for_a_student_are_refused(start: Command, tmp_path: Path) -> None:
    small = {key: value[:, :8, :8] for key, value in arrays().items() if key.endswith("images")}
    np.savez(tmp_path / "small.npz", **arrays(**small))
    refused(start("--dataset", tmp_path / "small.npz"), "SettingRefused", "16 to 512 pixels", "8 by 8")


def test_a_name_that_is_no_text_is_refused_in_words(start: Command, tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.npz"
    np.savez(path, **arrays())
    refused(start("--dataset", path), "SettingRefused", "not valid Unicode", "\\udce9")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file", ["is a file"]),
        ("file/below", ["not a folder"]),
        ("n" * 300, ["too long"]),
    ],
)
def test_a_place_that_cannot_hold_a_run_is_refused(
    start: Command, tmp_path: Path, out: str, words: list[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    refused(start("--out", tmp_path / out), "OutputRefused", *words)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written_is_refused_at_once(
    start: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for anybody but root, who may write anywhere.
    monkeypatch.setattr("os.access", lambda _, mode, **__: not mode & os.W_OK)
    monkeypatch.setattr(preparing, "find_dataset", lambda _: pytest.fail("data were read first"))
    refused(start(), "OutputRefused", "cannot be written")
    (tmp_path / "out").mkdir()
    refused(start(), "OutputRefused", "cannot be written")


@pytest.mark.parametrize("name", ["hospitals", "checkpoint.bin", "release", "study.json"])
def test_a_folder_with_what_a_run_would_write_is_refused(start: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    refused(start(), "OutputRefused", name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_failure_while_hospitals_are_made_leaves_nothing(
    start: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, mode: int = 0o644) -> None:
        if "hospitals/1" in str(path):
            raise OSError(28, "No space left on device", str(path))
        hospital_write(path, data, mode)

    hospital_write = write_atomically
    monkeypatch.setattr(hospital, "write_atomically", full)
    mine = tmp_path / "out" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    refused(start(), "OutputRefused", "disk is full")
    assert list((tmp_path / "out").iterdir()) == [mine]
    mine.unlink()
    refused(start(), "OutputRefused", "disk is full")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_hospitals_are_made_leaves_nothing(
    start: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def interrupted(folder: Path, *settings: Any) -> None:
        made.append(folder)
        if len(made) == 2:
            raise KeyboardInterrupt
        hospital.create_hospital(folder, *settings)

    monkeypatch.setattr(run_folder, "create_hospital", interrupted)
    assert start().code == 130
    assert made[0].parts[-2] == "hospitals"
    assert not (tmp_path / "out").exists()


def test_keys_that_cannot_sign_are_noticed_before_the_first_round(
    start: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("FEDWARD_CONFIG", str(home))
    ensure_default_keys()
    (home / "trust.json").write_text("[]")
    refused(start(), "TrustRefused", "trust.json")
    (home / "trust.json").unlink()
    next((home / "keys").iterdir()).write_bytes(b"{}")
    refused(start("--out", tmp_path / "other"), "TrustRefused")


def test_help_groups_the_options_and_says_what_a_simulation_is(fedward: Command) -> None:
    done = fedward("simulate", "--help")
    assert done.code == 0
    text = " ".join(done.out.split())
    for panel in ("The study", "Privacy", "Training in a hospital", "The coordinator", "The run"):
        assert f" {panel} " in text
    assert "protects nobody" in text
    assert "--install-completion" not in text


def test_a_real_process_refuses_as_well(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("fedward")
    done = subprocess.run(
        [program, "simulate", "--student", "none", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "FEDWARD_CONFIG": str(tmp_path / "config")},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("UnknownName: There is no student 'none'")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
