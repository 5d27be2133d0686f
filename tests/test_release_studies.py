"""What the studies of bytes and speed measure, and what meets their targets."""

from typing import Any

import numpy as np
import pytest

from fedward.common.graph_forms import FORMS
from fedward.common.models import StudentSpec
from fedward.simulations.studies import latency, release_pairs, sizes
from fedward.simulations.studies.rows import Row


def _sized(student: str, size: int, channels: int = 1) -> Row:
    return {"key": {"student": student, "side": 28, "channels": channels}, "bytes": size}


def _patched(student: str, ratio: float) -> Row:
    key = {"student": student, "side": 28, "channels": 1, "flips": 0.02}
    return {"key": key, "flipped": 0.02, "patch_ratio": ratio}


def _missed(rows: list[Row]) -> list[str]:
    return [target.name for target in sizes.targets(rows) if not target.is_met]


def test_files_and_patches_that_are_small_enough_meet_their_targets() -> None:
    rows = [
        _sized("ternary-vit-m", 700_000),
        _sized("ternary-vit-l", 2_000_000),
        _patched("ternary-vit-m", 80),
    ]
    assert (_missed(rows), len(sizes.targets(rows))) == ([], 3)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (_sized("ternary-vit-m", 700_001), "bytes of ternary-vit-m"),
        (_sized("ternary-vit-l", 2_000_001), "bytes of ternary-vit-l"),
        (_patched("ternary-vit-m", 79.9), "patch below fp32, 2.0% flipped"),
    ],
)
def test_one_that_is_too_large_misses(row: Row, words: str) -> None:
    assert _missed([row]) == [words]


def test_students_and_pairs_without_a_target_are_rows_alone() -> None:
    assert sizes.targets([_sized("ternary-cnn", 9**9), _patched("ternary-vit", 1.0)]) == []


@pytest.mark.parametrize("flips", [0.01, 0.04])
def test_a_simulated_pair_differs_by_the_share_that_was_asked_for(flips: float) -> None:
    row = release_pairs.simulated({"student": "ternary-vit", "side": 28, "channels": 1, "flips": flips})
    assert row["flipped"] == pytest.approx(flips, rel=0.1)
    assert row["patch_bytes"] < row["release_bytes"] / 3
    assert row["patch_ratio"] == row["fp32_bytes"] / row["patch_bytes"]


def _timed(student: str, speedup: float) -> Row:
    return {"key": {"student": student}, "speedup": speedup}


def test_a_students_speed_is_the_median_of_its_runs() -> None:
    rows = [_timed("ternary-vit-m", one) for one in (1.0, 2.2, 9.0)] + [_timed("ternary-cnn", 1.0)]
    (judged,) = latency.targets(rows)
    assert (judged.figure, judged.is_met) == (2.2, True)
    assert latency.speedups(rows)["ternary-cnn"] == 1.0
    assert not latency.targets([_timed("ternary-vit-l", 2.19)])[0].is_met


@pytest.mark.parametrize(
    ("student", "forms"), [("ternary-vit", 3), ("ternary-vit-mq", 3), ("ternary-cnn", 1)]
)
def test_each_form_of_its_own_is_timed_beside_the_fp32_network(student: str, forms: int) -> None:
    row: dict[str, Any] = latency.measure({"student": student, "side": 28, "repeats": 3})
    assert list(row["milliseconds"]) == ["fp32 network", *FORMS[:forms]]
    assert all(0 < own < 1000 for own in row["milliseconds"].values())
    fastest = min(list(row["milliseconds"].values())[1:])
    assert row["milliseconds"][row["fastest"]] == fastest
    assert row["speedup"] == pytest.approx(row["milliseconds"]["fp32 network"] / fastest)


def test_the_fp32_network_and_the_release_are_of_the_same_layers() -> None:
    graphs = latency.graphs_of(StudentSpec("ternary-vit", 1, 28, 28, 2))
    assert len(graphs["fp32 network"]) > 3 * len(graphs["fp32"])
    assert np.diff([len(set(graphs.values())), len(graphs)]) == [0]
