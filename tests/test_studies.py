"""Published tables: rows that outlive an interruption, targets that decide, runs of the defaults."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import CheckpointRefused, OutputRefused
from fedward.simulations.options import Options
from fedward.simulations.prepare import prepare
from fedward.simulations.studies import from_scratch
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study

KEYS: list[Row] = [{"seed": seed} for seed in range(3)]
QUIET: Callable[[str], None] = lambda _: None  # noqa: E731


class Counting:
    """Measures a key as ten times its seed, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Row] = []

    def __call__(self, key: Row) -> Row:
        self.asked.append(key)
        return {"figure": 10 * key["seed"]}


def test_a_key_is_measured_once(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    told: list[str] = []
    found = measured(tmp_path / "new" / "folder", [*KEYS[:2], KEYS[0]], first, told.append)
    assert found == [{"key": key, "figure": 10 * key["seed"]} for key in (KEYS[0], KEYS[1], KEYS[0])]
    assert told == ['measuring {"seed":0}', 'measuring {"seed":1}']
    assert measured(tmp_path / "new" / "folder", KEYS, second, QUIET)[:2] == found[:2]
    assert (first.asked, second.asked) == (KEYS[:2], KEYS[2:])


def test_a_row_is_on_the_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    def measure(key: Row) -> Row:
        path = tmp_path / "rows.jsonl"
        assert len(path.read_bytes().splitlines() if path.exists() else []) == key["seed"]
        if key["seed"] == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, KEYS, measure, QUIET)
    again = Counting()
    measured(tmp_path, KEYS, again, QUIET)
    assert again.asked == KEYS[2:]


@given(st.integers(1, 200))
def test_a_last_line_that_was_cut_off_is_measured_again(
    tmp_path_factory: pytest.TempPathFactory, lost: int
) -> None:
    out = tmp_path_factory.mktemp("rows")
    whole = measured(out, KEYS, Counting(), QUIET)
    data = (out / "rows.jsonl").read_bytes()
    kept = data[:-lost] if lost < len(data) else b""
    (out / "rows.jsonl").write_bytes(kept)
    again = Counting()
    assert measured(out, KEYS, again, QUIET) == whole
    assert again.asked == KEYS[kept.count(b"\n") :]
    assert (out / "rows.jsonl").read_bytes() == data


def test_a_cut_line_is_taken_off_without_writing_the_others_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(tmp_path, KEYS, Counting(), QUIET)
    with (tmp_path / "rows.jsonl").open("ab") as file:
        file.write(b'{"key":{"se')
    monkeypatch.setattr(Path, "write_bytes", lambda *_: pytest.fail("wrote hours of rows again"))
    again = Counting()
    measured(tmp_path, KEYS, again, QUIET)
    assert again.asked == []


@pytest.mark.parametrize("damage", [b"{\n", b"[]\n", b"5\n", b"{}\n", b"\xff\n", b'{"key":1}\nx\n', b"\n"])
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(damage)
    with pytest.raises(CheckpointRefused, match="damaged; name another --out"):
        measured(tmp_path, KEYS, Counting(), QUIET)
    assert (tmp_path / "rows.jsonl").read_bytes() == damage


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    counting = Counting()
    with pytest.raises(OutputRefused):
        measured(tmp_path / "file" / "below", KEYS, counting, QUIET)
    assert counting.asked == []


def test_what_fails_in_a_measurement_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    def offline(_: Row) -> Row:
        raise ConnectionError("no route")

    with pytest.raises(ConnectionError):
        measured(tmp_path, KEYS, offline, QUIET)


@pytest.mark.parametrize(
    ("figure", "target", "at_least", "met"),
    [(3.0, 3.0, False, True), (3.1, 3.0, False, False), (3.1, 3.0, True, True), (2.9, 3.0, True, False),
     (float("nan"), 3.0, True, False), (float("nan"), 3.0, False, False)],
)  # fmt: skip
def test_the_exit_code_says_whether_every_target_is_met(
    capsys: pytest.CaptureFixture[str], figure: float, target: float, at_least: bool, met: bool
) -> None:
    easy = Target("easy", 1.0, 1.0, True)
    hard = Target("hard", figure, target, at_least)
    assert conclude("s", [], [easy, hard], as_json=False) == (0 if met else 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["met", "met" if met else "MISSED"]


def test_json_is_one_object_with_rows_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"key": {"seed": 1}, "auc": 0.9}
    assert conclude("name", [row], [Target("t", 0.9, 0.95, True)], as_json=True, summary={"a": 1}) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "study": "name", "rows": [row], "summary": {"a": 1}, "passed": False,
        "targets": [{"name": "t", "figure": 0.9, "at least": 0.95, "met": False}],
    }  # fmt: skip


def test_a_study_refuses_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def study() -> None:
        raise CheckpointRefused("It is damaged.")

    monkeypatch.setattr("sys.argv", ["study"])
    with pytest.raises(SystemExit) as caught:
        run_study(study)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "CheckpointRefused: It is damaged.\n"


def made_up(case: str, seed: int, **changes: Any) -> Row:
    row = {
        "key": {"case": case, "seed": seed}, "auc": 0.93, "accuracy": 0.86, "balanced_accuracy": 0.85,
        "torch_auc": 0.93, "agreement": 1.0, "bytes": 16_000, "fp32_bytes": 250_000, "largest_epsilon": 0.99,
        "train_seconds": 100.0,
    }  # fmt: skip
    return row | changes


ALL = [made_up(case, seed) for case in from_scratch.CASES for seed in range(2)]


def test_targets_are_the_issues() -> None:
    bounds = {target.name: target.target for target in from_scratch.targets(ALL)}
    assert bounds["iid, epsilon 3: mean AUC"] == 0.915
    assert bounds["iid, epsilon 3: mean accuracy"] == 0.845
    assert bounds["dirichlet:0.5, epsilon 3: mean AUC"] == 0.91
    assert bounds["iid, epsilon 1: mean AUC"] == 0.90
    assert bounds["iid, epsilon 1: epsilon"] == 1.0
    assert bounds["fp32 over release bytes"] == 12.0
    assert all(target.is_met for target in from_scratch.targets(ALL))


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"auc": 0.80, "torch_auc": 0.80}, ["mean AUC"]),
        ({"accuracy": 0.5}, ["mean accuracy"]),
        ({"largest_epsilon": 3.001}, ["epsilon"]),
        ({"bytes": 21_000}, ["fp32 over release bytes"]),
        ({"agreement": 0.99}, ["ONNX agrees with torch"]),
        ({"torch_auc": 0.90}, ["AUC, ONNX less torch"]),
    ],
)
def test_one_bad_run_misses_its_target(changes: Row, missed: list[str]) -> None:
    found = [made_up("iid, epsilon 3", 0, **changes), *ALL[1:]]
    names = [target.name for target in from_scratch.targets(found) if not target.is_met]
    assert [name.removeprefix("iid, epsilon 3: ") for name in names] == missed


def test_the_summary_is_mean_and_deviation_by_case() -> None:
    found = [made_up("iid, epsilon 3", 0, auc=0.90), *ALL[1:]]
    table = from_scratch.summary(found)
    assert table["iid, epsilon 3"]["auc"] == pytest.approx(0.915)
    assert table["iid, epsilon 3"]["auc_sd"] == pytest.approx(0.03 / 2**0.5)
    assert (
        "auc_sd"
        not in from_scratch.summary([made_up(case, 0) for case in from_scratch.CASES])["iid, epsilon 1"]
    )


def test_a_measurement_is_a_run_of_the_defaults(
    fedward: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def small(options: Any, out: Path, trust: None) -> Any:
        asked.append(options)
        data = "phantom:train=60,val=30,test=40"
        return prepare(replace(options, dataset=data, rounds=1, hospitals=2), out, trust)

    monkeypatch.setattr(from_scratch, "prepare", small)
    row = from_scratch.measure({"case": "iid, epsilon 1", "seed": 7})
    assert (asked[0].dataset, asked[0].epsilon, asked[0].seed) == ("pneumoniamnist", 1.0, 7)
    defaults = Options()
    assert asked[0] == replace(defaults, dataset="pneumoniamnist", epsilon=1.0, seed=7)
    assert row["largest_epsilon"] <= 1.0
    assert set(made_up("x", 0)) - {"key"} <= set(row)
    assert len(row["hospital_aucs"]) == 2
    assert not os.path.exists("runs/studies")
