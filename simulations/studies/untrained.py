"""Students that nobody trained, for studies of bytes and speed."""

import numpy as np

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.models import StudentSpec, build_student, flatten, initialise
from fedward.common.randomness import KeyedGenerator

_MOVED = 0.05


def start_latents(spec: StudentSpec) -> Vector:
    """The student's start moved by Gaussian noise, so that no two norms, biases or positions are alike."""
    model = build_student(spec)
    initialise(model, KeyedGenerator.from_seed(0, "sizes"))
    start = flatten(list(model.parameters())).numpy()
    moved = start + _MOVED * KeyedGenerator.from_seed(0, "moved").normal(len(start))
    return np.asarray(moved, np.float32)


def settings_of(spec: StudentSpec, student: str) -> LocalSettings:
    """Settings of a student of that shape that is not to be trained."""
    return LocalSettings(
        student=student,
        channels=spec.channels,
        height=spec.height,
        width=spec.width,
        classes=("no", "yes"),
        task="binary",
        unit="image",
        sample_rate=1.0,
        local_steps=1,
        rounds=1,
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        target_delta=1e-5,
        views=1,
        augmentation="none",
        class_prior=None,
        ewc_lambda=0.0,
        distillation_alpha=0.0,
        distillation_temperature=1.0,
    )
