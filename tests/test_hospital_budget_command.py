"""`fedward hospital budget` shows what is spent, planned, left and affordable, by study and mechanism."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedward.client.commands import app
from fedward.client.registry import Registry
from fedward.common.chain import Head
from fedward.common.cli import run
from fedward.common.errors import LedgerRefused
from fedward.common.privacy import Mechanism, epsilon

DELTA = 1e-5
ROUND = Mechanism(2.1, 0.109, 3)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    registry = Registry(tmp_path / "state" / "budget")
    for name, seed in (("chest", 0), ("skin", 1)):
        images = np.random.default_rng(seed).integers(0, 256, (9, 64), dtype=np.uint8)
        registry.import_dataset(name, registry.identity.digests(images), total_epsilon=3.0, delta=DELTA)
    budget = registry.budget("chest")
    budget.reserve("first", Mechanism(2.1, 0.109, 30))
    for number in range(4):
        budget.charge("first", number, f"{number:064x}", ROUND)
    budget.charge("[red]second", 0, "f" * 64, Mechanism(9.57, 1.0, 1), kind="metric")
    return tmp_path / "state"


def shown(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["budget", *arguments], env={"COLUMNS": "160"})


def test_json_holds_every_figure(state: Path) -> None:
    found = json.loads(shown("--state", str(state), "--json").output)
    chest, skin = found["datasets"]
    assert (chest["names"], chest["images"], chest["unit"]) == (["chest"], 9, "image")
    spent = [Mechanism(2.1, 0.109, 12), Mechanism(9.57, 1.0, 1)]
    assert chest["spent"] == epsilon(spent, DELTA)
    assert chest["planned"] == epsilon([Mechanism(2.1, 0.109, 30), Mechanism(9.57, 1.0, 1)], DELTA)
    assert chest["left"] == 3.0 - chest["spent"]
    assert [(row["study"], row["kind"], row["rounds"], row["steps"]) for row in chest["usage"]] == [
        ("first", "dp-sgd", 4, 12),
        ("[red]second", "metric", 1, 1),
    ]
    assert chest["reserved"][0]["steps"] == 18
    assert chest["usage"][0]["rounds_affordable"] > 0
    assert chest["head"]["seq"] == 8
    assert skin["spent"] == 0.0


def test_the_table_is_for_a_person(state: Path) -> None:
    output = shown("--state", str(state)).output
    for part in (
        "chest: 9 images, epsilon by image at delta 1e-05",
        "rounds affordable",
        "[red]second",
        "skin",
    ):
        assert part in output


@pytest.mark.parametrize("columns", ["70", "80", "160"])
def test_no_name_and_no_figure_is_cut(state: Path, columns: str) -> None:
    """Two studies whose names differ at the end only must not look alike."""
    budget, names = Registry(state / "budget").budget("chest"), [f"{'x' * 190}-{end}" for end in "ab"]
    for name in names:
        budget.charge(name, 1, "a" * 64, Mechanism(21.25, 0.0109375, 3))
        budget.reserve(name, Mechanism(21.25, 0.0109375, 3))
    output = CliRunner().invoke(app, ["budget", "--state", str(state)], env={"COLUMNS": columns}).output
    rows = [[cell.strip() for cell in line.split("│")] for line in output.splitlines()]
    whole = "".join(row[1] for row in rows if len(row) > 2)
    assert "…" not in output
    assert all(whole.count(name) == 2 for name in names)  # what was spent, and what is reserved


def test_one_data_set_can_be_chosen(state: Path) -> None:
    found = json.loads(shown("--state", str(state), "--dataset", "skin", "--json").output)
    assert [one["names"] for one in found["datasets"]] == [["skin"]]


def test_a_plot_over_time_is_drawn(state: Path, tmp_path: Path) -> None:
    picture = tmp_path / "epsilon.png"
    assert shown("--state", str(state), "--plot", str(picture)).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_suspended_ledger_is_said(state: Path) -> None:
    with pytest.raises(LedgerRefused):
        Registry(state / "budget").budget("skin").require_anchor(Head(99, "0" * 64))
    assert "Suspended" in shown("--state", str(state), "--dataset", "skin").output


def test_refusals_have_a_name_and_exit_code_1(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["hospital", "budget", "--state", str(tmp_path / "nothing")]) == 1
    assert "LedgerRefused" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
    assert run(["hospital", "budget", "--state", str(state), "--dataset", "brain"]) == 1
    assert "UnknownName: There is no data set 'brain'; there are chest, skin." in capsys.readouterr().err
    assert run(["hospital", "budget", "--state", str(state), "--plot", str(tmp_path / "no" / "x.png")]) == 1
    assert "OutputRefused" in capsys.readouterr().err
    assert run(["hospital", "budget", "--what"]) == 2
