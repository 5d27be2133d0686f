"""Flower's own engine: the same release as in process, and a clear word where it does not come up."""

import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedward.common.errors import EngineFailed, QuorumMissed
from fedward.server.study_folder import StudyFolder
from fedward.simulations import flower_simulation

DATA = "phantom:train=60,val=30,test=40"
Command = Callable[..., Any]


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], StudyFolder]:
    """flower(script): a study's folder, and a shell script where Flower's program was."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))

    @contextmanager
    def no_superlink(work: Path) -> Iterator[dict[str, str]]:
        yield {**os.environ, "STUDY": str(tmp_path / "study")}

    def make(script: str) -> StudyFolder:
        program = bin_folder / "flwr"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(flower_simulation, "_superlink", no_superlink)
        (tmp_path / "study").mkdir(exist_ok=True)
        return StudyFolder(tmp_path / "study")

    return make


def test_ray_gives_the_release_that_this_process_gives(fedward: Command, tmp_path: Path) -> None:
    # A quote in the path, and a proxy that goes nowhere: both once kept Flower from starting.
    folder = tmp_path / 'a "b'
    base = ("simulate", "--dataset", DATA, "--hospitals", 2, "--rounds", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        done = fedward(*base, "--engine", "ray", "--out", folder / "ray")
    assert done.code == 0, done.err
    assert fedward(*base, "--out", folder / "inproc").code == 0
    ray, inproc = (json.loads((folder / name / "metrics.json").read_text()) for name in ("ray", "inproc"))
    assert ray["release"]["digest"] == inproc["release"]["digest"]
    assert ray["environment"]["engine"] == "ray"
    times = [{**row, "seconds": 0} for row in ray["rounds"]]
    assert times == [{**row, "seconds": 0} for row in inproc["rounds"]]


def test_the_bundle_that_is_sent_carries_no_code_and_names_the_study(flower: Command) -> None:
    folder = flower('touch "$STUDY/final.npy"')
    flower_simulation.run_on_ray(folder, 2)
    app = folder.path / "flower" / "app"
    assert sorted(path.name for path in app.iterdir()) == ["README.md", "pyproject.toml"]
    settings = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert settings["config"] == {"study-folder": str(folder.path.resolve())}
    assert settings["fab-include"] == ["/README.md"]


def test_a_refusal_of_the_coordinators_app_is_told_by_its_name(flower: Command) -> None:
    folder = flower(
        """exec >> "$STUDY/progress.jsonl"
           echo 'half a line of an earlier cra'
           echo '{"event":"refused","name":"QuorumMissed","message":"Too few."}'"""
    )
    with pytest.raises(QuorumMissed, match=r"Too few\."):
        flower_simulation.run_on_ray(folder, 2)


def test_a_refusal_of_an_earlier_run_is_not_told_again(flower: Command) -> None:
    folder = flower("exit 1")
    folder.note("refused", name="QuorumMissed", message="Long ago.")
    with pytest.raises(EngineFailed, match=r"run\.log"):
        flower_simulation.run_on_ray(folder, 2)


def test_flower_that_is_not_installed_is_told(flower: Command) -> None:
    folder = flower("exit 0")
    Path(sys.executable).with_name("flwr").unlink()
    with pytest.raises(EngineFailed, match=r"pip install 'fedward\[simulation\]'"):
        flower_simulation.run_on_ray(folder, 2)


def test_a_superlink_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "flower-superlink"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no such option\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    folder = StudyFolder(tmp_path / "study")
    with pytest.raises(EngineFailed, match=r"superlink\.log"):
        flower_simulation.run_on_ray(folder, 2)
    assert "no such option" in (tmp_path / "study" / "flower" / "superlink.log").read_text()
