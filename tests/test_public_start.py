"""A public start: what the public teacher sees, what a student learns of it, and the file that keeps it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedward.common.config import LocalSettings
from fedward.common.convolutions import COLUMNS, EMBEDDING
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import SettingRefused, StartRefused, TeacherRefused
from fedward.common.images import to_tensor
from fedward.common.models import build_student, parameter_count, unflatten
from fedward.common.npz_files import archive_bytes
from fedward.common.quantization import load_latents
from fedward.common.randomness import KeyedGenerator
from fedward.server import public_images as showing
from fedward.server.public_images import PublicImages, half_whitened, public_images
from fedward.server.public_start import StartPlan, public_start
from fedward.server.public_teacher import FEATURES, load_teacher, teacher_features
from fedward.server.reference import measure
from fedward.server.start_file import read_start_file, save_start

LocalMaker = Callable[..., LocalSettings]
SHORT = StartPlan(steps=20, tuning_steps=30, batch=16, tuning_batch=16)


def key(seed: int = 0) -> KeyedGenerator:
    return KeyedGenerator.from_seed(seed, "test")


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return load_teacher()


@pytest.fixture(scope="module")
def bright(phantom: ImageDataset) -> Split:
    """Records that any student can tell apart: class 1 is brighter."""
    labels = np.arange(60) % 2
    lift = (labels * 150).astype(np.uint8)[:, None, None, None]
    return Split((phantom.train.images[:60] // 4 + lift).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def shown(bright: Split) -> PublicImages:
    """Sixty images, whose targets are linear in their pixels."""
    images = to_tensor(bright.images)
    axes = torch.randn(images[0].numel(), EMBEDDING, generator=torch.Generator().manual_seed(0))
    return PublicImages(images.half(), half_whitened((images.flatten(1) @ axes).numpy()))


def network(local: LocalSettings, latents: np.ndarray) -> nn.Sequential:
    model = build_student(local.spec)
    load_latents(model, unflatten(torch.from_numpy(latents), list(model.parameters())), local.spec.precision)
    return model


@pytest.mark.parametrize("student", ["ternary-embed", "int8-embed", "fp32-embed"])
def test_a_start_knows_what_the_labelled_public_records_teach(
    make_local: LocalMaker, bright: Split, shown: PublicImages, student: str
) -> None:
    local = make_local(student=student, trained="head")
    start = public_start(local, shown, bright, key(), SHORT)
    assert start.dtype == np.float32
    assert start.shape == (parameter_count(build_student(local.spec)),)
    assert measure(local, start, bright)["auc"] > 0.95


def test_the_head_reads_embeddings_about_zero_and_of_length_one(
    make_local: LocalMaker, bright: Split, shown: PublicImages
) -> None:
    local = make_local(student="ternary-embed", trained="head")
    body = network(local, public_start(local, shown, bright, key(), SHORT))[:-1]
    with torch.no_grad():
        read = body(to_tensor(bright.images))
    assert read.mean(dim=0).abs().max() < 1e-4
    assert torch.all(read.norm(dim=1) <= 2.0)
    assert 0.05 < float(read.norm(dim=1).mean()) < 1.5


def test_distillation_brings_the_embedding_toward_the_teacher(
    make_local: LocalMaker, bright: Split, shown: PublicImages
) -> None:
    local = make_local(student="ternary-embed", trained="head")
    distances = []
    for steps in (1, 60):
        plan = StartPlan(steps=steps, tuning_steps=0, batch=32)
        model = network(local, public_start(local, shown, bright, key(), plan))
        with torch.no_grad():
            seen = model[:-2](shown.images.float())
        distances.append(float((seen - shown.targets.repeat(1, COLUMNS)).square().mean()))
    assert distances[1] < 0.8 * distances[0]


def test_the_same_generator_gives_the_same_start_bit_for_bit(
    make_local: LocalMaker, bright: Split, shown: PublicImages
) -> None:
    local, plan = make_local(student="ternary-embed", trained="head"), StartPlan(steps=2, tuning_steps=2)
    first, again, other = (public_start(local, shown, bright, key(seed), plan) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize(("labelled", "steps"), [(20, 300), (262, 300), (2947, 2947), (50_000, 5000)])
def test_the_more_labelled_images_the_longer_the_tuning(labelled: int, steps: int) -> None:
    assert StartPlan().steps_of_tuning(labelled) == steps
    assert StartPlan(tuning_steps=7).steps_of_tuning(labelled) == 7


def test_another_student_and_other_images_are_refused(
    make_local: LocalMaker, bright: Split, shown: PublicImages
) -> None:
    with pytest.raises(SettingRefused, match="ternary-embed"):
        public_start(make_local(student="ternary-cnn"), shown, bright, key(), SHORT)
    colour = PublicImages(shown.images.repeat(1, 3, 1, 1), shown.targets)
    with pytest.raises(SettingRefused, match="shape"):
        public_start(make_local(student="ternary-embed"), colour, bright, key(), SHORT)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 300), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_targets_are_half_whitened_whatever_the_features(count: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, width)) @ random.normal(size=(width, width)) + 5.0
    targets = half_whitened(np.pad(features, ((0, 0), (0, FEATURES - width))).astype(np.float32))
    assert targets.shape == (count, EMBEDDING)
    assert torch.isfinite(targets).all()
    assert float(targets.std(correction=0)) == pytest.approx(1.0, abs=1e-3)
    # Variances fall, and by the square root of what they were.
    spread = targets.double().var(dim=0, correction=0)
    assert torch.all(spread[:-1] - spread[1:] > -1e-4 * spread[0])


def test_features_that_never_change_teach_nothing_and_stay_finite() -> None:
    assert not half_whitened(np.full((9, FEATURES), 3.0, np.float32)).any()


def test_the_teacher_sees_the_same_in_grey_and_in_equal_colours(
    teacher: nn.Module, phantom: ImageDataset
) -> None:
    grey = to_tensor(phantom.train.images[:3])
    seen = teacher_features(teacher, grey)
    assert seen.shape == (3, FEATURES)
    assert np.allclose(seen, teacher_features(teacher, grey.repeat(1, 3, 1, 1)), atol=1e-4)
    assert np.abs(seen[0] - seen[1]).max() > 0.01


def test_of_no_images_the_teacher_sees_nothing(teacher: nn.Module) -> None:
    assert teacher_features(teacher, torch.zeros(0, 1, 28, 28)).shape == (0, FEATURES)


def test_weights_that_are_not_the_known_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 no such weights")
    with pytest.raises(TeacherRefused, match=r"weights\.pth does not hold"):
        load_teacher(tmp_path / "weights.pth")
    with pytest.raises(TeacherRefused):
        load_teacher(tmp_path / "missing.pth")


def test_a_teacher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(TeacherRefused, match=r"fedward\[public\]"):
        load_teacher()


def test_the_nearest_class_is_taken_whole_and_of_others_a_few(
    monkeypatch: pytest.MonkeyPatch, bright: Split, teacher: nn.Module
) -> None:
    monkeypatch.setattr(showing, "_OTHERS", 4)
    dark = bright.images[bright.labels == 0]
    shown = public_images(teacher, bright, dark[:10], key())
    assert shown.images.shape == (3 * (30 + 4), 1, *bright.images.shape[1:3])
    first = shown.images[:34].float()  # the views that nothing was done to
    is_dark = first.mean(dim=(1, 2, 3)) < 0.0
    assert int(is_dark.sum()) == 30
    assert len(shown.targets) == len(shown.images)


def test_what_was_saved_is_read_again_bit_for_bit(make_local: LocalMaker, tmp_path: Path) -> None:
    local = make_local(student="ternary-embed", trained="head")
    latents = np.random.default_rng(0).normal(size=_count(local)).astype(np.float32)
    save_start(tmp_path / "start.npz", local, latents, "phantoms")
    again, origin = read_start_file(tmp_path / "start.npz", local)
    assert again.tobytes() == latents.tobytes()
    assert origin == "phantoms"


def _count(local: LocalSettings) -> int:
    return parameter_count(build_student(local.spec))


def _written(path: Path, local: LocalSettings, **changes: Any) -> Path:
    latents = np.zeros(_count(local), np.float32)
    save_start(path, local, latents, "zeros")
    with np.load(path) as stored:
        header = json.loads(stored["header"].tobytes())
        arrays = {"start": changes.pop("start", stored["start"])}
    header |= changes
    path.write_bytes(
        archive_bytes({**arrays, "header": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    )
    return path


def test_a_start_that_was_changed_damaged_or_made_for_another_student_is_refused(
    make_local: LocalMaker, tmp_path: Path
) -> None:
    local, file = make_local(student="ternary-embed", trained="head"), tmp_path / "start.npz"
    ones = np.ones(_count(local), np.float32)
    for changes, words in (
        ({"start": ones}, "was changed"),
        ({"student": "int8-embed"}, "student int8-embed"),
        ({"height": 64}, "height 64"),
        ({"start": ones[1:]}, "does not hold the latents"),
        ({"start": ones.astype(np.float64)}, "does not hold the latents"),
        ({"sha256": None}, "was changed"),
    ):
        with pytest.raises(StartRefused, match=words):
            read_start_file(_written(file, local, **changes), local)
    whole = _written(file, local).read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"PK no zip", archive_bytes({"start": ones})):
        file.write_bytes(data)
        with pytest.raises(StartRefused):
            read_start_file(file, local)
    with pytest.raises(StartRefused, match="does not exist"):
        read_start_file(tmp_path / "none.npz", local)


def test_a_start_of_nan_is_refused(make_local: LocalMaker, tmp_path: Path) -> None:
    local = make_local(student="ternary-embed", trained="head")
    save_start(tmp_path / "start.npz", local, np.full(_count(local), np.nan, np.float32), "nothing")
    with pytest.raises(StartRefused):
        read_start_file(tmp_path / "start.npz", local)
