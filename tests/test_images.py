"""Images as the student sees them: one public scaling, and views that come from the key alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedward.common.config import AUGMENTATIONS
from fedward.common.images import augment, to_tensor
from fedward.common.randomness import KeyedGenerator

torch.set_num_threads(1)
RANDOM = tuple(kind for kind in AUGMENTATIONS if kind != "none")


def key(seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator.from_seed(seed, "views")


def pictures(count: int, channels: int = 1, height: int = 12, width: int = 12, seed: int = 0) -> Tensor:
    raw = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return to_tensor(raw)


def test_black_is_minus_one_white_is_one_and_channels_come_first() -> None:
    raw = np.zeros((1, 2, 3, 3), np.uint8)
    raw[0, 1, 2, 0] = 255
    tensor = to_tensor(raw)
    assert tensor.shape == (1, 3, 2, 3)
    assert tensor.dtype == torch.float32
    assert tensor[0, 0, 1, 2] == 1.0
    assert tensor.sum() == -16.0


def test_every_grey_value_keeps_its_place_and_the_input_is_left_alone() -> None:
    raw = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    tensor = to_tensor(raw)
    assert (tensor.flatten().diff() > 0).all()
    assert raw.ravel().tolist() == list(range(256))


def test_an_image_is_scaled_by_public_constants_not_by_its_batch() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    assert torch.equal(to_tensor(raw)[1:2], to_tensor(raw[1:2]))


def test_no_augmentation_is_the_identity_and_draws_nothing() -> None:
    generator, images = key(), pictures(3)
    assert torch.equal(augment(images, "none", generator), images)
    assert generator.bytes(8) == key().bytes(8)


@pytest.mark.parametrize("kind", RANDOM)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.sampled_from([1, 3]), st.integers(8, 20), st.integers(8, 20), st.integers(0, 99))
def test_a_view_keeps_shape_type_and_range(
    kind: str, count: int, channels: int, height: int, width: int, seed: int
) -> None:
    images = pictures(count, channels, height, width, seed)
    view = augment(images, kind, key(seed))
    assert view.shape == images.shape
    assert view.dtype == torch.float32
    assert count == 0 or view.abs().max() <= 1.0 + 1e-6


@pytest.mark.parametrize("kind", RANDOM)
def test_the_same_key_gives_the_same_view_and_another_key_another(kind: str) -> None:
    images = pictures(4)
    assert torch.equal(augment(images, kind, key(1)), augment(images, kind, key(1)))
    assert not torch.equal(augment(images, kind, key(1)), augment(images, kind, key(2)))


@pytest.mark.parametrize("kind", RANDOM)
def test_two_views_of_one_image_differ(kind: str) -> None:
    view = augment(pictures(1).repeat(2, 1, 1, 1), kind, key())
    assert not torch.allclose(view[0], view[1])


@pytest.mark.parametrize("kind", RANDOM)
def test_the_input_is_left_alone(kind: str) -> None:
    images = pictures(2)
    before = images.clone()
    augment(images, kind, key())
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", RANDOM)
@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 6))
def test_cutting_a_batch_in_two_changes_no_view(kind: str, cut: int) -> None:
    images = pictures(6)
    whole, generator = augment(images, kind, key()), key()
    parts = [augment(part, kind, generator) for part in (images[:cut], images[cut:])]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


@pytest.mark.parametrize("kind", RANDOM)
def test_a_view_does_not_depend_on_the_other_images(kind: str) -> None:
    images = pictures(3)
    others = images.clone()
    others[1:] = -others[1:]
    assert torch.equal(augment(images, kind, key())[0], augment(others, kind, key())[0])


def test_a_shift_moves_a_bright_dot_by_at_most_7_percent_of_a_side() -> None:
    image = torch.full((1, 1, 101, 101), -1.0)
    image[0, 0, 50, 50] = 1.0
    moved = []
    for seed in range(40):
        view = augment(image, "shift", key(seed))[0, 0] + 1.0
        rows, columns = torch.meshgrid(torch.arange(101.0), torch.arange(101.0), indexing="ij")
        centre = [(view * axis).sum() / view.sum() for axis in (rows, columns)]
        moved.append([abs(float(c) - 50.0) for c in centre])
    assert np.max(moved) <= 0.07 * 101 + 0.1
    assert np.max(moved, axis=0).min() > 0.04 * 101


def test_affine_keeps_a_flat_image_flat_and_changes_its_brightness() -> None:
    flat = torch.full((8, 1, 12, 12), 0.25)
    view = augment(flat, "affine", key())
    means = view.flatten(1).mean(dim=1)
    assert (view.flatten(1).std(dim=1) < 1e-6).all()
    assert (means >= 0.25 * 0.8 - 0.1 - 1e-6).all()
    assert (means <= 0.25 * 1.25 + 0.1 + 1e-6).all()
    assert means.std() > 0.01


def test_affine_stretches_the_contrast_by_08_to_125() -> None:
    halves = torch.full((60, 1, 16, 16), -0.3)
    halves[..., 8:] = 0.3
    view = augment(halves, "affine", key())
    contrast = (view.flatten(1).amax(dim=1) - view.flatten(1).amin(dim=1)) / 0.6
    assert contrast.min() > 0.8 - 1e-5
    assert contrast.max() < 1.25 + 1e-5
    assert contrast.max() - contrast.min() > 0.35
