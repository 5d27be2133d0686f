"""A mobile student's start from ImageNet weights: what it takes, what it leaves random, what it knows."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedward.common.codec import Vector, decode, encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import Split
from fedward.common.errors import SettingRefused
from fedward.common.images import to_tensor
from fedward.common.models import build_student, frozen_count, parameter_count, unflatten
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator
from fedward.server.imagenet_start import imagenet_start
from fedward.server.imagenet_weights import sources
from fedward.server.public_teacher import load_teacher
from fedward.server.reference import measure

LocalMaker = Callable[..., LocalSettings]
NARROW = (16, 64, 16, 80, 24, 96, 128, 48, 192, 192, 64, 128)


def key(seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator.from_seed(seed, "test")


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return load_teacher()


def records(channels: int = 1, side: int = 28) -> Split:
    """Sixty structured images; class 1 is brighter."""
    random, labels = np.random.default_rng(0), np.arange(60) % 2
    coarse = random.integers(0, 120, (60, 7, 7, channels))
    images = coarse.repeat(-(-side // 7), axis=1).repeat(-(-side // 7), axis=2)[:, :side, :side]
    return Split((images + labels[:, None, None, None] * 120).astype(np.uint8), labels)


def started(
    make_local: LocalMaker, teacher: nn.Module, **changes: Any
) -> tuple[LocalSettings, Vector, Split]:
    local = make_local(**{"height": 28, "width": 28, "trained": "head"} | changes)
    shown = records(local.channels, local.height)
    return local, imagenet_start(local, teacher, shown, key()), shown


def network(local: LocalSettings, latents: Vector) -> nn.Sequential:
    model = build_student(local.spec)
    load_latents(model, unflatten(torch.from_numpy(latents), list(model.parameters())), local.spec.precision)
    return model


def seen(model: nn.Sequential, images: Tensor) -> list[Tensor]:
    """What comes out of each convolution, behind its norm where it has one."""
    last = [
        after if isinstance(after, nn.GroupNorm) else own
        for own, after in pairwise(model.modules())
        if isinstance(own, nn.Conv2d)
    ]
    found: list[Tensor] = []
    for layer in last:
        layer.register_forward_hook(lambda *given: found.append(given[2]))
    with torch.no_grad():
        model(images)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "fp32-mobile"},
        {"student": "fp32-mobile", "channels": 3, "height": 64, "width": 64},
        {"student": "fp32-mobile", "widths": NARROW},
    ],
)
def test_channels_that_the_teacher_gives_have_the_means_and_deviations_of_its_batch_norms(
    make_local: LocalMaker, teacher: nn.Module, changes: dict[str, Any]
) -> None:
    local, start, shown = started(make_local, teacher, **changes)
    maps = seen(network(local, start), to_tensor(shown.images))
    given = list(sources(teacher, local.channels, [each.shape[1] for each in maps]))
    assert len(given) == len(maps) - 1
    for source, own in zip(given, maps, strict=False):
        count = min(own.shape[1], len(source.mean))
        mean, deviation = own.mean(dim=(0, 2, 3))[:count], own.std(dim=(0, 2, 3), correction=0)[:count]
        assert float((mean - source.mean[:count]).abs().median()) < 0.1
        ratio = deviation / source.deviation[:count].abs()
        # Channels that hardly vary on these images are not made to, and rounding moves some.
        assert float(ratio.median()) > 0.75
        assert float((ratio < 1.3).float().mean()) > 0.75


def test_no_random_channel_reaches_the_teachers(make_local: LocalMaker, teacher: nn.Module) -> None:
    local, start, _ = started(make_local, teacher, student="fp32-mobile")
    model = network(local, start)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    given = list(sources(teacher, 1, [layer.out_channels for layer in convolutions]))
    emptied = 0
    for layer, source in zip(convolutions, given, strict=False):
        outputs, inputs = source.weights.shape[:2]
        crossing = layer.weight[:outputs, inputs:]
        assert torch.all(crossing == 0)
        emptied += crossing.numel()
        taken = layer.weight[:outputs, :inputs].abs().sum(dim=(1, 2, 3)) > 0
        assert float(taken.float().mean()) > 0.75  # small ones are lost in rounding
    assert emptied > 0


@pytest.mark.parametrize("student", ["ternary-mobile", "int8-mobile"])
def test_hospitals_get_the_very_body_that_the_head_was_learned_behind(
    make_local: LocalMaker, teacher: nn.Module, student: str
) -> None:
    local, start, shown = started(make_local, teacher, student=student)
    sent = decode(encode(start, "int8"), len(start), "int8")
    first = frozen_count(local.spec, "head") - 4096  # the block that the head shares may move a little
    assert sent[:first].tobytes() == start[:first].tobytes()
    assert measure(local, sent, shown)["auc"] == pytest.approx(measure(local, start, shown)["auc"], abs=0.02)


@pytest.mark.parametrize("student", ["ternary-mobile", "int8-mobile", "fp32-mobile"])
def test_the_features_are_sparse_and_the_head_knows_what_the_labelled_records_teach(
    make_local: LocalMaker, teacher: nn.Module, student: str
) -> None:
    local, start, shown = started(make_local, teacher, student=student)
    with torch.no_grad():
        features = network(local, start)[:-1](to_tensor(shown.images))
    assert 0.05 < float((features > 0).float().mean()) < 0.3
    assert 2.0 < float(features.square().sum(dim=1).mean().sqrt()) < 6.0
    assert start.shape == (parameter_count(build_student(local.spec)),)
    assert np.isfinite(start).all()
    assert measure(local, start, shown)["auc"] > 0.95


def test_the_same_generator_gives_the_same_start_bit_for_bit(
    make_local: LocalMaker, teacher: nn.Module
) -> None:
    local, start, shown = started(make_local, teacher, student="ternary-mobile")
    again, other = (imagenet_start(local, teacher, shown, key(seed)) for seed in (0, 1))
    assert start.tobytes() == again.tobytes() != other.tobytes()


def test_images_that_are_all_alike_leave_no_number_that_is_none(
    make_local: LocalMaker, teacher: nn.Module
) -> None:
    local = make_local(student="ternary-mobile", trained="head", height=28, width=28)
    black = Split(np.zeros((20, 28, 28, 1), np.uint8), np.arange(20) % 2)
    assert np.isfinite(imagenet_start(local, teacher, black, key())).all()


def test_another_student_is_refused(make_local: LocalMaker, teacher: nn.Module) -> None:
    with pytest.raises(SettingRefused, match="take ternary-mobile"):
        imagenet_start(make_local(student="ternary-cnn"), teacher, records(), key())
