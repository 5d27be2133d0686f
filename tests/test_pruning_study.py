"""The study of pruning: a student is trained once for all shares, and targets are of the largest."""

from pathlib import Path

import numpy as np
import pytest

from fedward.common.datasets import ImageDataset
from fedward.simulations.studies import pruning
from fedward.simulations.studies.rows import Row

KEY: Row = {"student": "fp32-cnn", "share": 0.0, "seed": 3, "steps": 5, "tuned": 2}


def row(share: float, seed: int, auc: float, speedup: float) -> Row:
    figures = dict.fromkeys((*pruning._FIGURES, *pruning._COSTS), 1.0)
    key = {**KEY, "share": share, "seed": seed}
    return {"key": key, **figures, "auc": auc, "speedup": speedup, "speedup_224": 2 * speedup}


ROWS = [row(0.0, 0, 0.95, 1.0), row(0.0, 1, 0.97, 1.0), row(0.5, 0, 0.94, 1.5), row(0.5, 1, 0.974, 2.1)]


def test_means_are_over_seeds_by_student_and_share() -> None:
    whole, half = pruning.summary(ROWS)
    assert (whole["share"], half["share"], half["seeds"]) == (0.0, 0.5, 2)
    assert half["auc"] == pytest.approx(0.957)
    assert half["speedup_sd"] == pytest.approx(0.3 * 2**0.5)


def test_targets_hold_the_most_pruned_student_against_the_whole_one() -> None:
    at_28, at_224, lost = pruning.targets(ROWS)
    assert (at_28.figure, at_28.is_met) == (pytest.approx(1.8), False)
    assert (at_224.figure, at_224.is_met) == (pytest.approx(3.6), True)
    assert (lost.figure, lost.is_met) == (pytest.approx(0.003), True)


def test_a_student_is_trained_once_for_all_shares(
    tmp_path: Path, phantom: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, calls = pruning._settings(phantom, "fp32-cnn"), []

    def training(*arguments: object) -> np.ndarray:
        calls.append(arguments)
        return np.arange(9, dtype=np.float32)

    monkeypatch.setattr(pruning, "train_plainly", training)
    first = pruning._trained(settings, phantom, KEY, tmp_path)
    again = pruning._trained(settings, phantom, {**KEY, "share": 0.5}, tmp_path)
    assert first.tobytes() == again.tobytes()
    assert len(calls) == 1
    pruning._trained(settings, phantom, {**KEY, "seed": 4}, tmp_path)
    pruning._trained(settings, phantom, {**KEY, "steps": 6}, tmp_path)
    assert len(calls) == 3


def test_an_int8_students_fewer_bits_are_a_case_of_their_own() -> None:
    assert [len(pruning._cases(student)) for student in ("fp32-cnn", "int8-cnn", "ternary-cnn")] == [3, 4, 3]
    few = row(0.5, 0, 0.1, 1.0)
    few["key"]["of_bytes"] = 0.4
    assert [one["of_bytes"] for one in pruning.summary([*ROWS, few])] == [1.0, 1.0, 0.4]
    assert pruning.targets([*ROWS, few]) == pruning.targets(ROWS)


def test_a_row_of_phantoms_is_whole(
    tmp_path: Path, phantom: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "find_dataset", lambda _: phantom)
    monkeypatch.setattr(pruning, "_TURNS", 2)
    monkeypatch.setattr(pruning, "_LARGER", 16)
    found = pruning.measure_row({**KEY, "share": 0.5, "student": "ternary-cnn"}, tmp_path)
    assert sum(found["widths"]) == 80
    assert found["channels"] == 0.5
    assert set(found) >= {*pruning._FIGURES, *pruning._COSTS}
    assert found["bits"] is None
    few = pruning.measure_row({**KEY, "share": 0.5, "of_bytes": 0.6, "student": "int8-cnn"}, tmp_path)
    assert set(few["bits"]) <= {2, 4, 8}
    assert few["bits"] != [8] * 4
