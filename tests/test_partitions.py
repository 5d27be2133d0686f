"""Partitions use every image once, leave nobody empty, and depend on nothing but their seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.datasets import Split
from fedward.common.errors import SettingRefused, UnknownName
from fedward.simulations.partitions import make_hospitals, partition, scanner_shift

SPECS = [
    "iid",
    "dirichlet:0.5",
    "dirichlet:1e-6",
    "dirichlet:1e9",
    "size",
    "size:0",
    "size:1.5",
    "size:10",
    "scanner",
]


@given(
    spec=st.sampled_from(SPECS),
    hospitals=st.sampled_from([1, 2, 7, 8]),
    images=st.integers(8, 300),
    columns=st.sampled_from([None, 3]),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None)
def test_every_image_goes_to_exactly_one_hospital_and_nobody_is_left_without(
    spec: str, hospitals: int, images: int, columns: int | None, seed: int
) -> None:
    shape = images if columns is None else (images, columns)
    labels = np.random.default_rng(seed).integers(0, 2, shape)
    parts = partition(labels, spec, hospitals, seed)
    assert len(parts) == hospitals
    assert min(len(part) for part in parts) >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(images))
    for part, again in zip(parts, partition(labels, spec, hospitals, seed), strict=True):
        np.testing.assert_array_equal(part, again)
        np.testing.assert_array_equal(part, np.sort(part))


@pytest.mark.parametrize("spec", SPECS)
def test_as_many_hospitals_as_images_get_one_each(spec: str) -> None:
    parts = partition(np.arange(8) % 2, spec, 8, seed=0)
    assert [len(part) for part in parts] == [1] * 8


@pytest.mark.parametrize("spec", SPECS)
def test_another_seed_gives_another_partition(spec: str) -> None:
    labels = np.arange(200) % 2
    first, second = (np.concatenate(partition(labels, spec, 7, seed)) for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("hospitals", [7, 8])
def test_iid_hospitals_are_of_one_size_up_to_one_image(hospitals: int) -> None:
    sizes = {len(part) for part in partition(np.zeros(4708, int), "iid", hospitals, 0)}
    assert max(sizes) - min(sizes) <= 1


def skew(labels: np.ndarray, spec: str) -> float:
    """Mean distance of the hospitals' share of class 1 from the whole's."""
    parts = partition(labels, spec, 8, seed=3)
    return float(np.mean([abs(labels[part].mean() - labels.mean()) for part in parts]))


def test_a_smaller_dirichlet_parameter_skews_the_labels_more() -> None:
    labels = np.arange(4000) % 2
    assert skew(labels, "dirichlet:1e6") < 0.01 < 0.1 < skew(labels, "dirichlet:0.3")


def test_dirichlet_spreads_each_combination_of_findings_by_itself() -> None:
    labels = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[np.arange(2000) % 4]
    parts = partition(labels, "dirichlet:0.05", 8, seed=1)
    combined = labels @ [2, 1]
    of_commonest = sum(np.bincount(combined[part]).max() for part in parts)
    assert of_commonest / 2000 > 0.7  # a half at most, if only one finding counted


def test_sizes_follow_the_power_law() -> None:
    sizes = [len(part) for part in partition(np.zeros(6000, int), "size:1", 3, 0)]
    shares = np.array([1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(sizes, 6000 * shares / shares.sum(), atol=3)
    assert [len(part) for part in partition(np.zeros(6000, int), "size", 3, 0)] == sizes


@pytest.mark.parametrize("spec", ["", "idd", "Dirichlet:1", "iid "])
def test_an_unknown_partition_is_refused_with_those_that_exist(spec: str) -> None:
    with pytest.raises(UnknownName, match="iid, dirichlet:A, size:P and scanner"):
        partition(np.zeros(9, int), spec, 2, 0)


@pytest.mark.parametrize(
    "spec",
    [
        *["dirichlet", "dirichlet:", "dirichlet:0", "dirichlet:-1", "dirichlet:nan", "dirichlet:inf"],
        *["dirichlet:a", "dirichlet:1e308", "dirichlet:1e-300", "size:", "size:-1", "size:inf", "size:11"],
        *["iid:1", "scanner:2"],
    ],
)
def test_a_parameter_out_of_range_is_refused(spec: str) -> None:
    with pytest.raises(SettingRefused):
        partition(np.zeros(9, int), spec, 2, 0)


def test_more_hospitals_than_images_none_at_all_or_a_negative_seed_are_refused() -> None:
    with pytest.raises(SettingRefused, match="9 images cannot be spread over 10"):
        partition(np.zeros(9, int), "iid", 10, 0)
    with pytest.raises(SettingRefused, match="at least one hospital"):
        partition(np.zeros(9, int), "iid", 0, 0)
    with pytest.raises(SettingRefused, match="negative"):
        partition(np.zeros(9, int), "iid", 2, -1)


def gradient_split(count: int = 40) -> Split:
    images = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), (count, 16, 16, 1))
    return Split(images, np.arange(count) % 2)


def test_hospitals_hold_the_images_that_the_partition_gives_them() -> None:
    split = Split(np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8), np.arange(30) % 3)
    parts = partition(split, "dirichlet:1", 4, 5)
    for hospital, part in zip(make_hospitals(split, "dirichlet:1", 4, 5), parts, strict=True):
        np.testing.assert_array_equal(hospital.images, split.images[part])
        np.testing.assert_array_equal(hospital.labels, split.labels[part])


def test_scanner_hospitals_are_iid_ones_seen_through_their_own_scanner() -> None:
    split = gradient_split()
    plain, shifted = make_hospitals(split, "iid", 5, 2), make_hospitals(split, "scanner", 5, 2)
    for index, (before, after) in enumerate(zip(plain, shifted, strict=True)):
        np.testing.assert_array_equal(after.labels, before.labels)
        np.testing.assert_array_equal(after.images, scanner_shift(before.images, index, 2))
    assert len({hospital.images[0].tobytes() for hospital in shifted}) == 5


@given(hospital=st.integers(0, 200), seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_a_scanner_keeps_the_order_of_brightness_and_most_of_its_range(hospital: int, seed: int) -> None:
    shifted = scanner_shift(np.arange(256, dtype=np.uint8), hospital, seed)
    assert shifted.dtype == np.uint8
    assert (np.diff(shifted.astype(int)) >= 0).all()
    assert int(shifted[-1]) - int(shifted[0]) > 120
    np.testing.assert_array_equal(shifted, scanner_shift(np.arange(256, dtype=np.uint8), hospital, seed))
