"""`fedward simulate --private-metrics --private-fisher`, and a later study that takes the Fisher up."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.common.npz_files import read_archive
from fedward.simulations import simulate

Command = Callable[..., Any]
DATA = "phantom:train=90,val=30,test=40"
ASKED = ("--private-metrics", 8, "--private-fisher", 6)


@pytest.fixture(scope="module")
def first(fedward: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    assert _simulate(fedward, out, *ASKED).code == 0
    return out


def _simulate(fedward: Command, out: Path, *options: object) -> Any:
    base = ("simulate", "--dataset", DATA, "--hospitals", 3, "--rounds", 2, "--epsilon", 4, "--out", out)
    return fedward(*base, "--student", "ternary-cnn", *options)


def _metrics(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "metrics.json").read_bytes()))


def test_figures_of_the_hospitals_own_records_are_named_as_such(first: Path) -> None:
    measurement = _metrics(first)["measurement"]
    assert measurement["on"] == "the hospitals' own training records"
    assert (measurement["hospitals"], measurement["num_examples"]) == (3, 90)
    assert set(measurement["figures"]) == set(measurement["standard_errors"])
    assert 'id="measurement"' in (first / "report.html").read_text()


def test_rounds_and_measurement_together_stay_within_the_studys_epsilon(first: Path) -> None:
    metrics = _metrics(first)
    for hospital in metrics["hospitals"]:
        assert 3.9 < hospital["epsilon"] <= 4.0
    assert metrics["rounds"][-1]["epsilon"] < 3.95  # without the measurement


def test_the_same_seed_gives_the_same_answers(fedward: Command, first: Path, tmp_path: Path) -> None:
    assert _simulate(fedward, tmp_path / "again", *ASKED).code == 0
    for name in ("measured.json", "fisher.npy", "final.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (first / name).read_bytes()
    assert _metrics(tmp_path / "again")["release"]["digest"] == _metrics(first)["release"]["digest"]


def test_a_run_that_was_cut_off_before_its_report_is_resumed_without_another_question(
    fedward: Command, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(first, out)
    (out / "metrics.json").unlink()
    monkeypatch.setattr(simulate, "run_in_process", lambda *_: pytest.fail("the rounds ran again"))
    assert fedward("simulate", "--resume", "--out", out).code == 0
    assert _metrics(out)["measurement"] == _metrics(first)["measurement"]


def test_a_later_study_pulls_with_the_fisher_that_it_is_given(
    fedward: Command, first: Path, tmp_path: Path
) -> None:
    out = tmp_path / "second"
    ewc = ("--continue-from", first / "release", "--ewc-lambda", 0.3, "--ewc-fisher", first / "fisher.npy")
    assert _simulate(fedward, out, *ewc, "--reference", "none", "--prior", "none").code == 0
    fixed = read_archive(out / "fixed.npz", ("fisher",)).arrays["fisher"]
    assert np.array_equal(fixed, np.load(first / "fisher.npy"))
    assert "measurement" not in _metrics(out)


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        (["--ewc-fisher", "x.npy"], "SettingRefused", "needs --ewc-lambda"),
        (["--private-metrics", 8, "--epsilon", "none"], "SettingRefused", "leave out --epsilon none"),
        (["--private-metrics", "nan"], "SettingRefused", "metric_noise_multiplier"),
        (["--private-fisher", 0.1], "SettingRefused", "spent already"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_round(
    fedward: Command, tmp_path: Path, options: list[object], name: str, words: str
) -> None:
    done = _simulate(fedward, tmp_path / "out", *options)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith(f"{name}: ")
    assert words in done.err
    assert not (tmp_path / "out").exists()


def test_a_fisher_of_another_student_is_refused(fedward: Command, first: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.ones(5, np.float32))
    ewc = ("--continue-from", first / "release", "--ewc-lambda", 0.3, "--ewc-fisher", tmp_path / "other.npy")
    done = _simulate(fedward, tmp_path / "out", *ewc)
    assert done.code == 1
    assert "no Fisher of this student" in done.err
