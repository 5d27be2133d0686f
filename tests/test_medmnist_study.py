"""The benchmark over MedMNIST's sets: what it runs, what it resumes, and what stands beside its figures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedward.common.config import LocalSettings
from fedward.common.datasets import save_npz
from fedward.common.decision import decide
from fedward.common.errors import DatasetRefused, OutputRefused, SettingRefused, UnknownName
from fedward.common.medmnist_sets import MEDMNIST_SETS
from fedward.server.recipes import RECIPES
from fedward.simulations import sources
from fedward.simulations.options import Options
from fedward.simulations.phantoms import make_phantoms
from fedward.simulations.studies import medmnist, medmnist_cells
from fedward.simulations.studies.medmnist_charts import write_charts
from fedward.simulations.studies.medmnist_table import (
    FIGURES,
    markdown,
    over_common_sets,
    summarise,
    targets,
    write_table,
)
from fedward.simulations.studies.published import BITMEDVIT, PUBLISHED, RESNET_18
from fedward.simulations.studies.rows import Row, run_study

OFFLINE = "there is no network."


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder, no network, and no answer of an earlier test."""
    medmnist.absence.cache_clear()
    monkeypatch.setattr(sources, "search_folders", list)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A set of 60, 30 and 40 images of 16 x 16 pixels as a file."""
    save_npz(tmp_path / "tiny.npz", make_phantoms(size=16, counts=(60, 30, 40), seed=3))
    return tmp_path / "tiny.npz"


def study(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Type the study's command line; the exit code."""
    monkeypatch.setattr("sys.argv", ["medmnist", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        run_study(medmnist.main)
    return int(caught.value.code or 0)


def offline(asked: list[str]) -> Callable[..., Path]:
    def download(name: str, *_: object) -> Path:
        asked.append(name)
        raise DatasetRefused(OFFLINE)

    return download


def made_up(name: str = "bloodmnist", seed: int = 0, **changes: Any) -> Row:
    key = {
        "set": name,
        "mode": "federated",
        "student": "ternary-cnn",
        "epsilon": 3.0,
        "recipe": "from-scratch",
    }
    key |= {"seed": seed} | {part: changes.pop(part) for part in list(changes) if part in key}
    figures = dict.fromkeys(FIGURES, 0.9) | {"bytes": 16_000, "latency_ms": 0.07, "fp32_latency_ms": 0.06}
    return {"key": key, **figures, "largest_epsilon": 2.99} | changes


# --- published figures


def test_each_model_has_an_accuracy_for_each_of_the_twelve_sets() -> None:
    for one in PUBLISHED:
        assert set(one.accuracies) == set(MEDMNIST_SETS)
        assert set(one.aucs) in (set(MEDMNIST_SETS), set())
        assert all(0.4 < figure <= 1.0 for figure in [*one.accuracies.values(), *one.aucs.values()])


def test_the_anchors_average_what_the_issue_says() -> None:
    assert RESNET_18.mean_over(MEDMNIST_SETS) == (
        pytest.approx(0.819, abs=5e-4),
        pytest.approx(0.922, abs=5e-4),
    )
    assert BITMEDVIT.mean_over(MEDMNIST_SETS) == (pytest.approx(0.811, abs=5e-4), None)
    assert (RESNET_18.accuracies["pneumoniamnist"], RESNET_18.aucs["pneumoniamnist"]) == (0.854, 0.944)


@given(st.sets(st.sampled_from(sorted(MEDMNIST_SETS)), min_size=1))
def test_a_published_mean_is_over_exactly_the_named_sets(sets: set[str]) -> None:
    assert RESNET_18.mean_over(sets)[0] == pytest.approx(mean(RESNET_18.accuracies[name] for name in sets))
    assert RESNET_18.mean_over([*sets, "phantom"]) == (None, None)
    assert RESNET_18.mean_over([]) == (None, None)


# --- cells


def test_large_sets_have_settings_of_their_own_and_the_others_the_defaults() -> None:
    large = {"rounds": medmnist_cells.LARGE_ROUNDS, "sample_rate": medmnist_cells.LARGE_SAMPLE_RATE}
    defaults = {"rounds": Options().rounds, "sample_rate": Options().sample_rate}
    for name in MEDMNIST_SETS:
        expected = large if name in medmnist_cells.LARGE_SETS else defaults
        assert medmnist_cells.settings(name, "from-scratch", is_quick=False) == expected
    quick = medmnist_cells.settings("pathmnist", "from-scratch", is_quick=True)
    assert quick == {"rounds": medmnist_cells.QUICK_ROUNDS, "sample_rate": medmnist_cells.LARGE_SAMPLE_RATE}


def a_key(**changes: Any) -> Row:
    key = {
        "set": "phantom",
        "mode": "federated",
        "student": "int8-vit",
        "epsilon": 8.0,
        "recipe": "from-scratch",
    }
    return key | {"seed": 5, "rounds": 7, "sample_rate": 0.5} | changes


def test_a_key_is_the_defaults_but_for_what_it_names() -> None:
    asked = {"dataset": "phantom", "student": "int8-vit", "epsilon": 8.0, "seed": 5, "rounds": 7}
    expected = replace(Options(), **asked, sample_rate=0.5, hospitals=8)  # type: ignore[arg-type]
    assert medmnist_cells.options_of(a_key()) == expected
    assert medmnist_cells.options_of(a_key(mode="central")) == replace(expected, hospitals=1)
    plain = medmnist_cells.options_of(a_key(epsilon=None, rounds=None, sample_rate=None))
    assert (plain.epsilon, plain.rounds, plain.sample_rate) == (None, Options().rounds, Options().sample_rate)


def test_a_recipe_by_name_is_the_recipe_of_the_command() -> None:
    asked = medmnist_cells.options_of(
        a_key(recipe="distilled", student="int8-embed", rounds=None, sample_rate=None)
    )
    own = {**RECIPES["distilled"], "student": "int8-embed"}
    assert {name: getattr(asked, name) for name in own} == own
    assert (asked.recipe, asked.dataset, asked.epsilon, asked.seed) == ("distilled", "phantom", 8.0, 5)
    with pytest.raises(UnknownName, match="from-scratch, distilled"):
        medmnist_cells.options_of(a_key(recipe="best"))


def test_a_named_recipe_brings_its_own_settings() -> None:
    assert medmnist_cells.settings("pathmnist", "best", is_quick=False) == {
        "rounds": None,
        "sample_rate": None,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sets", "pneumoniaminst"], "UnknownName: No data set 'pneumoniaminst'"),
        (["--sets", ","], "UnknownName: No set is named"),
        (["--modes", "alone"], "UnknownName: There is no mode 'alone'; choose of central, federated."),
        (["--precisions", "int4"], "UnknownName: There is no precision 'int4'"),
        (["--student", "cnn,resnet"], "UnknownName: There is no network 'resnet'"),
        (["--epsilons", "three"], "SettingRefused: --epsilons are numbers or none"),
        (["--epsilons", "3,nan"], "SettingRefused: epsilon is from 0.001 to 1000"),
    ],
)
def test_a_slip_of_the_pen_is_refused_before_the_first_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(medmnist, "measure", lambda key: pytest.fail(f"ran {key}"))
    assert study(monkeypatch, *arguments) == 1
    assert said in capsys.readouterr().err


def test_all_stands_for_the_twelve_sets_and_doubles_for_one() -> None:
    assert medmnist_cells.chosen_sets("all") == sorted(MEDMNIST_SETS)
    assert medmnist_cells.chosen_sets("octmnist, bloodmnist,octmnist") == ["octmnist", "bloodmnist"]
    assert medmnist_cells.chosen_epsilons("none,3,3.0") == [None, 3.0]


# --- runs


def test_a_study_measures_real_runs_and_goes_on_where_it_was_cut_off(
    fedward: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny: Path,
) -> None:
    monkeypatch.setitem(
        medmnist_cells.HOSPITALS, "federated", 2
    )  # each one's ledger takes a second to add up
    out = tmp_path / "out"
    asked = [
        "--sets",
        tiny,
        "--modes",
        "federated",
        "--precisions",
        "ternary",
        "--out",
        out,
        "--quick",
        "--json",
    ]
    assert study(monkeypatch, *asked, "--epsilons", "none", "--seeds", 1) == 0
    kept = (out / "rows.jsonl").read_bytes()
    capsys.readouterr()
    assert study(monkeypatch, *asked, "--epsilons", "none,8", "--seeds", 1) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (out / "rows.jsonl").read_bytes().startswith(kept)
    assert said.err.count("measuring") == 1
    plain, private = found["rows"]
    assert plain["largest_epsilon"] == 0.0
    assert 0.0 < private["largest_epsilon"] <= 8.0
    assert set(FIGURES) <= set(private)
    assert private["key"]["rounds"] == medmnist_cells.QUICK_ROUNDS
    assert [Path(name).name for name in found["files"]] == [
        "medmnist.md", "medmnist.json", "accuracy_epsilon.svg", "accuracy_bytes.svg", "accuracy_latency.svg",
    ]  # fmt: skip
    assert all(Path(name).stat().st_size for name in found["files"])
    assert json.loads((out / "medmnist.json").read_bytes()) == found["summary"]


def test_a_set_that_cannot_be_had_is_a_row_once_asked_for_and_tried_again_by_the_next_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sources, "download_medmnist", offline(asked))
    arguments = ["--sets", "breastmnist", "--seeds", 2, "--out", tmp_path, "--json"]
    assert study(monkeypatch, *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert asked == ["breastmnist"]  # 2 seeds of 24 cells, and one try
    assert len(found["rows"]) == 48
    assert {row["refusal"] for row in found["rows"]} == {found["summary"]["refusals"][0][1]}
    assert found["rows"][0]["refusal"].startswith("not at hand: breastmnist of 28 pixels is in none of")
    assert not (tmp_path / "rows.jsonl").exists()
    assert (
        f"| breastmnist | not at hand: breastmnist of 28 pixels is in none of , and {OFFLINE} |"
        in (tmp_path / "medmnist.md").read_text()
    )
    medmnist.absence.cache_clear()
    monkeypatch.setattr(medmnist, "find_dataset", lambda _: None)
    monkeypatch.setattr(medmnist, "_measured", lambda options: made_up("breastmnist", options.seed))
    assert study(monkeypatch, *arguments, "--quick") == 0
    assert len((tmp_path / "rows.jsonl").read_bytes().splitlines()) == 48


def test_a_refused_run_is_a_row_with_its_sentence_but_a_full_disk_ends_the_study(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    def refuse(refusal: Exception) -> Callable[..., Any]:
        def prepare(*_: object) -> Any:
            raise refusal

        return prepare

    key = a_key(set=str(tiny))
    monkeypatch.setattr(medmnist, "prepare", refuse(SettingRefused("No noise reaches it.")))
    assert medmnist.measure(key) == {"refusal": "SettingRefused: No noise reaches it."}
    monkeypatch.setattr(medmnist, "prepare", refuse(OutputRefused("The disk is full.")))
    with pytest.raises(OutputRefused):
        medmnist.measure(key)


@given(
    st.sampled_from(["binary", "multi-class", "multi-label"]),
    hnp.arrays(np.float64, (20, 4), elements=st.floats(-9, 9)),
    st.lists(st.integers(1, 97), min_size=4, max_size=4),
)
def test_accuracy_at_frequencies_decides_for_the_likeliest_class(
    task: str, logits: np.ndarray, weights: list[int]
) -> None:
    logits = logits[:, :2] if task == "binary" else logits
    prior = np.array(weights[: logits.shape[1]]) / (
        100 if task == "multi-label" else sum(weights[: logits.shape[1]])
    )
    local = _local(task, tuple(prior.tolist()))
    found = decide(logits, task, medmnist._bars(local))
    if task == "multi-label":
        scores = logits + np.log(prior / (1 - prior))
        sure = np.abs(scores) > 1e-5
        assert ((found == (scores > 0)) | ~sure).all()
    else:
        scores = logits + np.log(prior)
        best = np.take_along_axis(scores, found[:, None], axis=1)[:, 0]
        assert (best >= scores.max(axis=1) - 1e-5).all()


def _local(task: str, prior: tuple[float, ...]) -> LocalSettings:
    classes = tuple(f"class {index}" for index in range(len(prior)))
    return LocalSettings(
        "fp32-cnn", 1, 16, 16, classes, task, "image", 1.0, 1, 1, 0.0, 1.0, 1e-5, 1, "none", prior, 0.0,
        distillation_alpha=0.0, distillation_temperature=1.0,
    )  # fmt: skip


# --- table and charts


@given(st.lists(st.floats(0.1, 1.0), min_size=1, max_size=4))
def test_a_cell_is_the_mean_and_deviation_of_its_seeds(accuracies: list[float]) -> None:
    rows = [made_up(seed=seed, accuracy=value) for seed, value in enumerate(accuracies)]
    rows[0] |= {"auc": None}  # as where the test split lacks a class: then there is no mean of the others
    (one,) = summarise(rows).measured
    assert (one.seeds, one.means["auc"]) == (len(rows), None)
    assert one.means["accuracy"] == pytest.approx(mean(accuracies))
    if len(rows) > 1:
        assert one.deviations["accuracy"] == pytest.approx(stdev(accuracies))
    else:
        assert one.deviations == {}


@given(
    st.sets(st.sampled_from(sorted(MEDMNIST_SETS)), min_size=1),
    st.sets(st.sampled_from(sorted(MEDMNIST_SETS)), min_size=1),
)
def test_averages_are_over_the_sets_that_a_cell_was_measured_on_and_so_are_the_published(
    federated: set[str], central: set[str]
) -> None:
    rows = [made_up(name, accuracy=0.5 + 0.01 * len(name)) for name in federated]
    rows += [made_up(name, mode="central") for name in central]
    rows += [made_up("phantom"), {"key": made_up("octmnist")["key"], "refusal": "not at hand: no."}]
    for average in summarise(rows).averages:
        sets = federated if average.cell.mode == "federated" else central
        assert set(average.sets) == sets
        assert len(average.sets) == len(sets)
        assert average.published["ResNet-18"] == pytest.approx(RESNET_18.mean_over(sets))
        if average.cell.mode == "federated":
            assert average.means["accuracy"] == pytest.approx(mean(0.5 + 0.01 * len(name) for name in sets))
    (common, *_) = over_common_sets(summarise(rows)) or [None]
    assert (set(common.sets) if common else set()) == federated & central


def test_what_fell_back_from_a_recipe_is_marked_and_told() -> None:
    fell = {"student": "ternary-cnn", "recipe": "from-scratch", "recipe_note": "there are no colour images."}
    rows = [made_up(name, recipe="distilled") for name in ("bloodmnist", "octmnist")]
    rows[0] |= fell
    rows[1] |= {"student": "ternary-embed", "recipe": "distilled", "recipe_note": ""}
    found = summarise(rows)
    assert [bool(one.fallback) for one in found.measured] == [True, False]
    assert [one.fell_back for one in found.averages] == [1]
    text = markdown(found)
    assert "| federated, ternary-cnn, distilled (fell back) |" in text
    assert "| federated, ternary-cnn, distilled (fell back on 1) |" in text
    assert "| ternary-cnn from-scratch: there are no colour images. |" in text
    assert "Fell back" not in markdown(summarise([made_up()]))


def test_the_table_has_ours_the_published_and_what_was_refused() -> None:
    rows = [made_up(seed=0, accuracy=0.8), made_up(seed=1, accuracy=0.9), made_up("a|b", auc=None)]
    rows += [{"key": key | {"seed": seed}, "refusal": "not at hand: no."} for seed in (0, 1)
             for key in (made_up("octmnist")["key"],)]  # fmt: skip
    text = markdown(summarise(rows))
    assert "| federated, ternary-cnn | 3 | 2 | 0.900 (0.000) | 0.850 (0.071) | 0.900" in text
    assert "| ResNet-18, 28 pixels (published) | none |  | 0.958 |  |  | 0.998 |  |  |  |" in text
    assert "| BiTMedViT, 224 pixels (published) | none |  | 0.975 |  |  | - |" in text
    assert "## a\\|b" in text
    assert text.count("| octmnist | not at hand: no. |") == 1
    assert all(one.source in text for one in PUBLISHED)


def test_the_two_files_hold_the_same_and_the_published_figures_of_their_sets(tmp_path: Path) -> None:
    table = summarise([made_up()])
    text, data = write_table(tmp_path, table)
    assert text.read_text() == markdown(table)
    found = json.loads(data.read_bytes())
    assert found["measured"][0]["means"]["accuracy"] == 0.9
    assert found["published"][0]["accuracy"] == {"bloodmnist": 0.958}


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"largest_epsilon": 3.01}, ["bloodmnist, federated, ternary-cnn: epsilon"]),
        ({"bytes": 1_000_001}, ["bytes"]),
        ({"accuracy_at_frequencies": 0.96}, ["accuracy beside BiTMedViT"]),
        ({"accuracy_at_frequencies": 0.95}, ["accuracy beside ResNet-18", "accuracy beside BiTMedViT"]),
    ],
)
def test_targets_are_the_budget_and_the_aim(changes: Row, missed: list[str]) -> None:
    rows = [made_up(**({"accuracy_at_frequencies": 0.99} | changes))]
    names = [target.name for target in targets(summarise(rows)) if not target.is_met]
    assert [name.rpartition(", 1 sets: ")[2] for name in names] == missed


def test_only_federated_ternary_cells_at_epsilon_3_are_held_to_the_aim() -> None:
    others = [
        made_up(mode="central"),
        made_up(student="fp32-cnn"),
        made_up(epsilon=8.0),
        made_up(epsilon=None),
    ]
    names = [target.name for target in targets(summarise(others))]
    assert len(names) == 3
    assert all(name.endswith("epsilon") for name in names)


def test_the_same_rows_draw_the_same_charts_and_no_rows_none(tmp_path: Path) -> None:
    rows = [made_up(name, mode=mode, epsilon=epsilon, seed=seed) for name in ("bloodmnist", "octmnist")
            for mode in ("central", "federated") for epsilon in (None, 3.0) for seed in (0, 1)]  # fmt: skip
    drawn = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        drawn.append([path.read_bytes() for path in write_charts(folder, summarise(rows))])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3
    by_epsilon, by_bytes, by_latency = (data.decode() for data in drawn[0])
    assert all(
        word in by_epsilon for word in ("bloodmnist", "octmnist", "ResNet-18 (published, not private)")
    )
    assert "accuracy, mean of 2 sets" in by_bytes
    assert "ms an image" in by_latency
    assert write_charts(tmp_path, summarise([])) == []
    unshared = [made_up("bloodmnist"), made_up("octmnist", mode="central")]
    assert len(write_charts(tmp_path, summarise(unshared))) == 1
