"""Phantoms are seeded, honest about being synthetic, and neither trivial nor hopeless to tell apart."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.datasets import ImageDataset, Split, fingerprint
from fedward.common.errors import SettingRefused, UnknownName
from fedward.simulations.phantoms import make_phantoms

FEW = (40, 10, 10)
KINDS: list[dict[str, Any]] = [
    {"kind": "xray"},
    {"kind": "findings"},
    {"kind": "cell"},
    {"kind": "cell", "classes": 4},
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_images_and_another_seed_others(kind: dict[str, Any]) -> None:
    np.random.seed(1)
    first = make_phantoms(**kind, counts=FEW, seed=3)
    np.random.seed(2)
    assert make_phantoms(**kind, counts=FEW, seed=3).sha256 == first.sha256
    assert make_phantoms(**kind, counts=FEW, seed=4).sha256 != first.sha256
    assert first.sha256 == fingerprint(first.train, first.val, first.test)


def test_a_longer_training_split_leaves_the_others_as_they_are() -> None:
    short, long = (make_phantoms(counts=(count, 10, 10)) for count in (20, 30))
    assert fingerprint(short.test) == fingerprint(long.test)


def test_splits_share_no_image() -> None:
    data = make_phantoms(counts=FEW)
    images = np.concatenate([data.train.images, data.val.images, data.test.images])
    assert len(np.unique(images, axis=0)) == sum(FEW)


@pytest.mark.parametrize("kind", KINDS)
def test_they_say_that_they_are_synthetic(kind: dict[str, Any]) -> None:
    assert make_phantoms(**kind, counts=FEW).source.startswith("synthetic phantoms, not patients")


@pytest.mark.parametrize(
    ("kind", "channels", "task", "classes"),
    [
        (KINDS[0], 1, "binary", 2),
        (KINDS[1], 1, "multi-label", 3),
        (KINDS[2], 3, "binary", 2),
        (KINDS[3], 3, "multi-class", 4),
    ],
)
def test_each_kind_has_its_shape_and_task(
    kind: dict[str, Any], channels: int, task: str, classes: int
) -> None:
    data = make_phantoms(**kind, counts=FEW, size=20)
    assert (data.task, len(data.classes)) == (task, classes)
    for split, count in zip((data.train, data.val, data.test), FEW, strict=True):
        assert split.images.shape == (count, 20, 20, channels)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.labels.shape == ((count, 3) if task == "multi-label" else (count,))


@given(
    classes=st.sampled_from([2, 4]),
    imbalance=st.floats(1, 50),
    counts=st.tuples(*[st.integers(4, 60)] * 3),
)
@settings(deadline=None, max_examples=30)
def test_every_class_is_in_every_split_and_the_last_is_as_rare_as_asked(
    classes: int, imbalance: float, counts: tuple[int, int, int]
) -> None:
    data = make_phantoms("cell", classes, imbalance, size=16, counts=counts)
    for split, count in zip((data.train, data.val, data.test), counts, strict=True):
        tally = np.bincount(split.labels, minlength=classes)
        assert tally.sum() == count
        assert tally.min() >= 1
        assert tally[-1] == max(1, round(count / (1 + (classes - 1) * imbalance)))
        assert np.ptp(tally[:-1]) <= 1


def test_findings_have_the_share_asked_for_and_occur_together() -> None:
    labels = make_phantoms("findings", imbalance=3, counts=(400, 10, 10)).train.labels
    np.testing.assert_array_equal(labels.sum(axis=0), [100, 100, 100])
    assert set(np.unique(labels)) == {0, 1}
    assert len(np.unique(labels, axis=0)) == 8


def test_labels_come_in_no_order() -> None:
    labels = make_phantoms(counts=(200, 10, 10)).train.labels
    assert 60 < (np.diff(labels) != 0).sum() < 140


@pytest.mark.parametrize("size", [16, 28, 31, 64])
def test_pictures_have_contrast_and_are_not_burnt_out_at_any_size(size: int) -> None:
    for kind in KINDS:
        images = make_phantoms(**kind, counts=FEW, size=size).train.images
        assert images.reshape(len(images), -1).std(axis=1).min() > 10
        assert (images == 255).mean() < 0.1


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of pairs of one positive and one negative that the scores put in order."""
    above = scores[truth == 1][:, np.newaxis] - scores[truth == 0]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def features(split: Split) -> np.ndarray:
    """2 x 2 means of each image, freed of exposure, and their squares."""
    images = split.images.astype(np.float64)
    images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    images = images / images.std(axis=(1, 2, 3), keepdims=True)
    means = images.reshape(len(images), 14, 2, 14, 2, -1).mean(axis=(2, 4)).reshape(len(images), -1)
    return np.concatenate([means, means**2], axis=1)


def one_hot(data: ImageDataset, split: Split) -> np.ndarray:
    return split.labels if data.task == "multi-label" else np.eye(len(data.classes))[split.labels]


@pytest.mark.parametrize("kind", KINDS)
def test_ridge_regression_learns_something_and_not_everything(kind: dict[str, Any]) -> None:
    data = make_phantoms(**kind)
    x, y = features(data.train), one_hot(data, data.train)
    weights = np.linalg.solve(x.T @ x + 300 * np.eye(x.shape[1]), x.T @ (y - y.mean(axis=0)))
    scores, truth = features(data.test) @ weights, one_hot(data, data.test)
    mean = np.mean([auc(scores[:, label], truth[:, label]) for label in range(len(data.classes))])
    assert 0.75 < mean < 0.97


def test_the_default_set_is_painted_in_moments() -> None:
    start = time.process_time()
    data = make_phantoms("cell", 4)
    assert [len(split.labels) for split in (data.train, data.val, data.test)] == [1200, 200, 400]
    assert time.process_time() - start < 5  # about .3 s alone; the rest is for a busy machine


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": 3},
        {"kind": "cell", "classes": 3},
        {"imbalance": 0.5},
        {"imbalance": float("nan")},
        {"imbalance": 1e9},
        {"size": 15},
        {"size": 513},
        {"counts": (1, 10, 10)},
        {"counts": (10, 10, 0)},
        {"counts": (10**9, 10, 10)},
        {"seed": -1},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingRefused):
        make_phantoms(**wrong)


def test_an_unknown_kind_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownName, match="xray, findings, cell"):
        make_phantoms("mri")
