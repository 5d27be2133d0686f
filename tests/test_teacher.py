"""Training without privacy on public data learns, and learns the same again from the same generator."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.models import build_student, parameter_count
from fedward.common.randomness import KeyedGenerator
from fedward.server.reference import measure, student_logits
from fedward.server.teacher import train_plainly

LocalMaker = Callable[..., LocalSettings]


def _generator(seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator.from_seed(seed, "test")


@pytest.fixture(scope="module")
def bright(phantom: ImageDataset) -> Split:
    """Records that any student can tell apart: class 1 is brighter."""
    labels = np.arange(60) % 2
    images = (phantom.train.images[:60] // 4 + (labels * 150).astype(np.uint8)[:, None, None, None]).astype(
        np.uint8
    )
    return Split(images, labels)


@pytest.mark.parametrize("student", ["fp32-cnn", "ternary-cnn", "int8-depthwise"])
def test_it_learns_what_can_be_learnt(make_local: LocalMaker, bright: Split, student: str) -> None:
    local = make_local(student=student)
    latents = train_plainly(local, bright, 15, _generator())
    assert latents.dtype == np.float32
    assert latents.shape == (parameter_count(build_student(local.spec)),)
    assert measure(local, latents, bright)["auc"] > 0.95


def test_the_same_generator_gives_the_same_teacher_bit_for_bit(make_local: LocalMaker, bright: Split) -> None:
    first, again = (train_plainly(make_local(), bright, 3, _generator()) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != train_plainly(make_local(), bright, 3, _generator(1)).tobytes()


def test_it_does_not_read_the_global_generators(make_local: LocalMaker, bright: Split) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    first = train_plainly(make_local(), bright, 3, _generator())
    torch.manual_seed(1)
    np.random.seed(1)
    assert train_plainly(make_local(), bright, 3, _generator()).tobytes() == first.tobytes()


def test_one_record_is_enough(make_local: LocalMaker, bright: Split) -> None:
    alone = Split(bright.images[:1], bright.labels[:1])
    assert np.isfinite(train_plainly(make_local(), alone, 2, _generator())).all()


def test_a_public_prior_lets_a_rare_class_win(make_local: LocalMaker, bright: Split) -> None:
    """Trained as if class 1 were rare, its logit stands higher once the prior is left out."""

    def lead(prior: tuple[float, float] | None) -> float:
        latents = train_plainly(make_local(class_prior=prior), bright, 5, _generator())
        logits = student_logits(make_local(), latents, bright.images)
        return float((logits[:, 1] - logits[:, 0]).mean())

    assert lead((0.99, 0.01)) > lead(None) + 0.5
    assert lead((0.01, 0.99)) < lead(None) - 0.5


def test_it_goes_on_from_given_latents(make_local: LocalMaker, bright: Split) -> None:
    local = make_local(student="fp32-cnn")
    first = train_plainly(local, bright, 15, _generator())
    kept = first.copy()
    again = train_plainly(local, bright, 1, _generator(1), first)
    assert first.tobytes() == kept.tobytes()
    assert 0.0 < np.abs(again - first).max() < 0.1  # one step of AdamW, not another start
