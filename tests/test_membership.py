import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fedward.client import training
from fedward.common.errors import CheckpointRefused, DatasetRefused, SettingRefused, UnknownName
from fedward.common.metrics import roc_auc
from fedward.simulations.studies import membership as study
from fedward.simulations.studies.membership import Plan, likelihood_ratios, members, membership

TINY = Plan("phantom:size=16,train=60,val=4,test=4", 40, 4, (None, 1.0), 0, private_steps=2, plain_steps=2)


def _students(gap: float, students: int = 30, pool: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    seen = rng.random((students, pool)) < 0.5
    level = rng.normal(0, 3, pool)  # records differ far more than membership does
    return level + gap * seen + rng.normal(0, 1, (students, pool)), seen


def test_the_attack_finds_members_whatever_the_level_of_the_record() -> None:
    confidences, seen = _students(gap=2.0)
    assert _auc(likelihood_ratios(confidences, seen, 0), seen[0]) > 0.85
    assert _auc(confidences[0], seen[0]) < 0.75  # what a threshold on the confidence would find


def test_the_attack_finds_nothing_where_there_is_nothing() -> None:
    confidences, seen = _students(gap=0.0)
    aucs = [_auc(likelihood_ratios(confidences, seen, target), seen[target]) for target in range(10)]
    assert abs(np.mean(aucs) - 0.5) < 0.03


def test_the_attack_does_not_read_the_answer() -> None:
    confidences, seen = _students(gap=1.0)
    turned = seen.copy()
    turned[3] = ~turned[3]
    np.testing.assert_array_equal(
        likelihood_ratios(confidences, seen, 3), likelihood_ratios(confidences, turned, 3)
    )


def test_coins_are_fair_and_differ_between_students() -> None:
    plan = dataclasses.replace(TINY, pool=10_000)
    first, second = members(plan, 0), members(plan, 1)
    assert abs(first.mean() - 0.5) < 0.03
    assert abs((first == second).mean() - 0.5) < 0.03
    np.testing.assert_array_equal(first, members(plan, 0))


def test_a_study_that_was_cut_off_goes_on_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "noise_multiplier", lambda *asked: 2.0)  # the search takes seconds
    whole = membership(TINY, _folder(tmp_path / "whole"))
    cut, trained = _folder(tmp_path / "cut"), []
    real = training.train

    def failing(*arguments: object) -> object:
        trained.append(1)
        if len(trained) == 6:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(study, "train", failing)
    with pytest.raises(KeyboardInterrupt):
        membership(TINY, cut)
    again = membership(TINY, cut)
    assert len(trained) == 8 + 1  # eight students, and the one that was cut off once more
    assert json.dumps(again) == json.dumps(whole)
    assert len(whole["rows"]) == 8
    assert not whole["passed"]  # two steps memorise nothing, so the attack shows nothing
    assert not whole["figures"]["auc_without_privacy"]["met"]


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    plan = dataclasses.replace(TINY, epsilons=())
    membership(plan, tmp_path)
    with pytest.raises(CheckpointRefused):
        membership(dataclasses.replace(plan, seed=1), tmp_path)


def test_data_that_cannot_be_attacked_are_refused(tmp_path: Path) -> None:
    for spec, refusal in (
        ("phantom:size=16,train=20,val=4,test=4", SettingRefused),
        ("phantom-findings:size=16,train=60,val=4,test=4", SettingRefused),
        ("nonsense", UnknownName),
        (str(tmp_path / "none.npz"), DatasetRefused),
    ):
        with pytest.raises(refusal):
            membership(dataclasses.replace(TINY, dataset=spec), tmp_path)


def _auc(scores: np.ndarray, truth: np.ndarray) -> float:
    area = roc_auc(scores, truth)
    assert area is not None
    return area


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
