"""The search for students: none over the budget is trained, a cut search goes on, the best is within it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.convolutions import STEP, WIDTHS
from fedward.common.datasets import ImageDataset
from fedward.common.errors import DatasetRefused, SettingRefused, UnknownName
from fedward.server.mixed_precision import model_bytes
from fedward.simulations.studies import search, search_trials
from fedward.simulations.studies.rows import Row
from fedward.simulations.studies.search import pareto, searched, targets, within_reach
from fedward.simulations.studies.search_trials import Budget, PublicRecords, measure_trial, public_records

KEY: Row = {"network": "cnn", "bits": "ternary", "widths": [16, 16, 16], "steps": 2, "seed": 1}
AMPLE, TIGHT = Budget(10**9, 1e6), Budget(10, 1e6)
DATASET = "phantom:size=16,train=60,val=24,test=20,seed=3"


@pytest.fixture(scope="module")
def public() -> PublicRecords:
    return public_records(DATASET)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `train_plainly` was called with; it trains all the same."""
    calls: list[Any] = []
    plainly = search_trials.train_plainly

    def training(*arguments: Any) -> Any:
        calls.append(arguments)
        return plainly(*arguments)

    monkeypatch.setattr(search_trials, "train_plainly", training)
    return calls


def fake(key: Row) -> Row:
    """A row without training: wider is larger, slower and better; a transformer is 1000 wide."""
    size = sum(key["widths"] or [1000])
    row = {"key": key, "student": f"int8-{key['network']}", "bits": None, "bytes": size, "milliseconds": size}
    row |= {"multiply_adds": size}
    return row if size > 100 else {**row, "auc": size / 100, "accuracy": 0.5}


class Answering:
    """Answers as `fake` does, a proposal once; remembers them, and can be cut off."""

    def __init__(self, cut: int = 10**6) -> None:
        self.asked: list[Row] = []
        self._left = cut

    def __call__(self, proposal: Row) -> Row:
        if len(self.asked) == self._left:
            raise KeyboardInterrupt
        self.asked.append(proposal)
        return fake(proposal)


def test_training_reads_public_splits_and_never_the_test_split(
    public: PublicRecords, phantom: ImageDataset
) -> None:
    assert len(public.training.images) == 60 + 12
    assert (public.training.images[:60] == public.dataset.train.images).all()
    assert (public.training.labels[60:] == public.half_a.labels).all()
    both = sorted(image.tobytes() for half in (public.half_a, public.half_b) for image in half.images)
    assert both == sorted(image.tobytes() for image in public.dataset.val.images)


def test_a_half_without_an_auc_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(DatasetRefused, match="one class only"):
        public_records("phantom:size=16,train=60,val=2,test=20")


@pytest.mark.parametrize("budget", [TIGHT, Budget(10**9, 1e-9)])
@pytest.mark.parametrize("bits", search_trials.BITS)
def test_a_trial_over_either_budget_is_never_trained(
    public: PublicRecords, trained: list[Any], budget: Budget, bits: str
) -> None:
    row = measure_trial({**KEY, "bits": bits}, public, budget)
    assert (trained, "auc" in row) == ([], False)
    assert set(search.COSTS) <= set(row)
    assert not budget.holds(row)


def test_a_trial_of_no_steps_is_never_trained(public: PublicRecords, trained: list[Any]) -> None:
    assert "auc" not in measure_trial({**KEY, "steps": 0}, public, AMPLE)
    assert trained == []


@pytest.mark.parametrize(("bits", "steps"), [("ternary", [2]), ("int8", [2]), ("mixed", [1, 1])])
def test_a_trial_trains_for_its_steps_on_public_records(
    public: PublicRecords, trained: list[Any], bits: str, steps: list[int]
) -> None:
    row = measure_trial({**KEY, "bits": bits}, public, AMPLE)
    assert [call[2] for call in trained] == steps
    assert all(call[1] is public.training for call in trained)
    assert 0.0 <= row["auc"] <= 1.0
    assert trained[-1][0].widths == (16, 16, 16)
    assert row["bits"] == (None if bits != "mixed" else [8] * 4)


def test_the_size_that_counts_is_of_the_trained_weights(
    public: PublicRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = measure_trial({**KEY, "steps": 0}, public, AMPLE)
    dense = np.sign(np.random.default_rng(0).normal(size=untrained["parameters"])).astype(np.float32)
    monkeypatch.setattr(search_trials, "train_plainly", lambda *_: dense)
    budget = Budget(untrained["bytes"], 1e6)
    row = measure_trial(KEY, public, budget)
    assert "auc" in row
    assert row["bytes"] == model_bytes(search_trials._settings(KEY, public.dataset), dense)
    assert row["bytes"] != untrained["bytes"]


def test_fewer_bits_make_a_mixed_student_fit(public: PublicRecords, trained: list[Any]) -> None:
    whole, least = (
        measure_trial({**KEY, "bits": bits}, public, AMPLE)["bytes"] for bits in ("int8", "ternary")
    )
    budget = Budget((whole + 2 * least) // 3, 1e6)
    row = measure_trial({**KEY, "bits": "mixed"}, public, budget)
    assert budget.holds(row)
    assert set(row["bits"]) > {2} or set(row["bits"]) == {4}
    assert trained[-1][0].bits == tuple(row["bits"])


def test_the_same_key_gives_the_same_row_but_for_its_time(public: PublicRecords) -> None:
    first, second = (measure_trial({**KEY, "network": "vit", "widths": None}, public, AMPLE) for _ in "ab")
    assert {**first, "milliseconds": 0} == {**second, "milliseconds": 0}


def test_a_proposal_is_a_student_of_the_searched_networks() -> None:
    asked = Answering()
    searched(["cnn", "mobile", "vit"], 30, 0, Budget(100, 100), asked)
    assert {one["network"] for one in asked.asked} == {"cnn", "mobile", "vit"}
    assert {one["bits"] for one in asked.asked} == set(search_trials.BITS)
    for one in asked.asked:
        own = WIDTHS.get(one["network"], ())
        widths = one["widths"] or ()
        assert len(widths) == len(own)
        assert all(width in range(STEP, most + 1, STEP) for width, most in zip(widths, own, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_the_sampler_hears_by_how_much_a_trial_is_over_the_budget(seed: int) -> None:
    sizes = [row["bytes"] for row in searched(["mobile"], 40, seed, Budget(200, 200), fake)]
    assert min(sizes) > 200  # none was ever within it
    assert sum(sizes[-10:]) < 0.75 * sum(sizes[:10])


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_the_same_seed_proposes_the_same(seed: int) -> None:
    first, second, other = Answering(), Answering(), Answering()
    for answering, own in ((first, seed), (second, seed), (other, seed ^ 1)):
        searched(["cnn", "mobile"], 10, own, Budget(100, 100), answering)
    assert first.asked == second.asked != other.asked


def run(out: Path, trials: int, **changed: Any) -> None:
    usual: dict[str, Any] = {
        "most_bytes": 9000, "most_ms": 1e6, "dataset": DATASET, "network": ["cnn", "vit"], "trials": trials,
        "steps": 2, "seed": 0, "out": out, "as_json": True,
    }  # fmt: skip
    search.main(**{**usual, **changed})


@pytest.fixture
def found(capsys: pytest.CaptureFixture[str]) -> Callable[..., Row]:
    """found(out, trials, ...) -> what a search printed."""

    def call(out: Path, trials: int, **changed: Any) -> Row:
        with pytest.raises(search.typer.Exit) as left:
            run(out, trials, **changed)
        assert left.value.exit_code == 0
        result: Row = json.loads(capsys.readouterr().out)
        return result

    return call


def test_a_search_finds_a_student_within_the_budget_and_measures_none_twice(
    tmp_path: Path, found: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = found(tmp_path, 3)
    assert first["best"]["bytes"] <= 9000
    assert first["best"] == first["pareto"][0]
    assert first["networks"] == ["cnn"]  # no vit has so few bytes
    assert len(first["rows"]) == 3
    monkeypatch.setattr(search, "measure_trial", None)
    assert found(tmp_path, 3) == first


def test_a_search_that_was_cut_off_goes_on_as_if_it_never_stopped(
    tmp_path: Path, found: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Row] = []

    def measuring(key: Row, *_: object) -> Row:
        asked.append(key)
        if len(asked) == 13:
            raise KeyboardInterrupt
        return {name: value for name, value in fake(key).items() if name != "key"}

    monkeypatch.setattr(search, "measure_trial", measuring)
    changed: Any = {"most_bytes": 100, "network": ["cnn", "mobile"]}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 24, **changed)
    resumed = found(tmp_path / "cut", 24, **changed)
    assert asked[12] == asked[13]
    measured_once = asked[:12] + asked[13:]
    assert resumed == found(tmp_path / "whole", 24, **changed)
    assert asked[len(measured_once) + 1 :] == measured_once


def test_an_impossible_budget_is_one_refusal_before_any_trial(tmp_path: Path, trained: list[Any]) -> None:
    with pytest.raises(SettingRefused, match=r"within 1 bytes .* ternary-cnn [\d,]+ bytes .* Allow more"):
        run(tmp_path, 3, most_bytes=1)
    assert trained == []


def test_a_search_in_vain_is_a_refusal() -> None:
    rows = [fake({"network": "vit", "widths": None})]
    with pytest.raises(SettingRefused, match="None of 1 trials is within"):
        pareto(rows, AMPLE)


@pytest.mark.parametrize("most_ms", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_budget_is_a_number_above_0(tmp_path: Path, most_ms: float) -> None:
    with pytest.raises(SettingRefused, match="above 0"):
        run(tmp_path, 3, most_ms=most_ms)


def test_an_unknown_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="resnet"):
        run(tmp_path, 3, network=["resnet"])


def test_networks_out_of_reach_are_not_searched() -> None:
    assert within_reach(["cnn", "vit"], Budget(24, 24), fake) == ["cnn"]
    assert within_reach(["cnn", "vit"], Budget(1000, 1000), fake) == ["cnn", "vit"]


def line(auc: float, *costs: float) -> Row:
    named = dict(zip(search.COSTS, costs, strict=True))
    key = {"widths": None, "costs": costs, "auc": auc}
    return {"key": key, "student": "s", "bits": None, "auc": auc, "accuracy": 0.5, **named}


@given(st.lists(st.tuples(*[st.integers(1, 3)] * 4), min_size=1, max_size=12))
def test_the_table_holds_what_nothing_beats(points: list[tuple[int, ...]]) -> None:
    lines = pareto([line(*point) for point in points], AMPLE)
    kept = {(one["auc"], *(one[cost] for cost in search.COSTS)) for one in lines}
    assert len(kept) == len(lines)

    def beats(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return one != other and one[0] >= other[0] and all(a <= b for a, b in zip(one[1:], other[1:]))  # noqa: B905

    assert kept == {own for own in points if not any(beats(one, own) for one in points)}
    assert lines[0]["auc"] == max(auc for auc, *_ in points)


def test_what_is_over_the_budget_after_training_is_not_in_the_table() -> None:
    (best,) = pareto([line(0.9, 101, 1, 1), line(0.8, 100, 1, 1), line(0.95, 1, 1, 101)], Budget(100, 100))
    assert best["auc"] == 0.8
    assert all(target.is_met for target in targets(best, Budget(100, 100)))
