"""Multiply-adds: what a count by hand gives, and how they grow."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.arithmetic import map_values, multiply_adds
from fedward.common.errors import UnknownName
from fedward.common.models import FAMILIES, NETWORKS, StudentSpec


def of(network: str, side: int = 28, channels: int = 1, classes: int = 2) -> int:
    return multiply_adds(StudentSpec(f"fp32-{network}", channels, side, side, classes))


def test_the_convolutional_student_is_counted_as_by_hand() -> None:
    first, second, third = 14 * 14 * 32 * 9, 7 * 7 * 64 * 32 * 9, 7 * 7 * 64 * 64 * 9
    assert of("cnn") == first + second + third + 64 * 7 * 7 * 2


def test_the_values_of_its_maps_are_counted_as_by_hand() -> None:
    spec = StudentSpec("fp32-cnn", 1, 28, 28, 2)
    assert map_values(spec) == 14 * 14 * 32 + 2 * 7 * 7 * 64
    assert map_values(replace(spec, widths=(8, 64, 16))) == 14 * 14 * 8 + 7 * 7 * (64 + 16)


@pytest.mark.parametrize(("network", "shared"), [("vit", 96), ("vit-mq", 32)])
def test_the_transformer_is_counted_as_by_hand(network: str, shared: int) -> None:
    projections, perceptron = 2 * 96 * 96 + 2 * 96 * shared, 2 * 96 * 192
    block = 49 * (projections + perceptron) + 2 * 49 * 49 * 96
    assert of(network) == 49 * 96 * 16 + 4 * block + 96 * 2


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FAMILIES), st.integers(16, 64), st.integers(2, 20))
def test_more_pixels_or_classes_never_cost_less(family: str, side: int, classes: int) -> None:
    assert of(family, 2 * side if family != "vit" else side) >= of(family, side)
    assert of(family, side, classes=classes + 1) > of(family, side, classes=classes)
    assert of(family, side, channels=3) > of(family, side, channels=1)


def test_every_network_is_counted_and_none_is_made_up() -> None:
    assert all(of(network) > 0 for network in NETWORKS)
    with pytest.raises(UnknownName):
        of("resnet")
