"""A recipe's public start for a study, or the reason why there is none."""

import dataclasses
import math
from collections.abc import Callable

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.randomness import KeyedGenerator
from fedward.server.imagenet_start import imagenet_start
from fedward.server.public_images import PublicImages, public_images
from fedward.server.public_start import public_start
from fedward.server.public_teacher import load_teacher
from fedward.server.recipes import check_family
from fedward.server.reference import halve, measure
from fedward.server.teacher import train_plainly

Tell = Callable[[str], None]
_PLAIN_STEPS = 600
_FEWEST = 20  # labelled public images, below which nothing can be tuned or compared


def start_or_reason(
    recipe: str,
    local: LocalSettings,
    public: ImageDataset | None,
    reference: Split | None,
    generator: KeyedGenerator,
    tell: Tell,
) -> tuple[Vector | None, str]:
    """A public start for students of `local`, or None and why the study is to train from scratch.

    There is none without enough reference records, for images of another shape, and where it is right less
    often on half B of the reference records than a student that saw nothing but half A, beyond two standard
    errors.

    Args:
        recipe: of `PUBLIC_STARTS`.
        public: images of the study's kind; None for the recipe `imagenet`.

    Raises:
        TeacherRefused: the public teacher is not installed, or is another.
        SettingRefused: the student takes no public start.
    """
    check_family(recipe, local)  # before minutes of work
    if reference is None or len(reference.images) < _FEWEST:
        return None, f"the recipe {recipe} needs at least {_FEWEST} public reference records."
    labelled = halve(reference).calibration
    if public is None:
        start = imagenet_start(local, load_teacher(), labelled, generator)
    elif public.train.images.shape[1:] != reference.images.shape[1:]:
        shapes = _shape(public.train), _shape(reference)
        return None, f"the public images of {public.name} are {shapes[0]}, and the study's {shapes[1]}."
    else:
        images = _shown(public.name, public.train, labelled, tell)
        start = public_start(local, images, labelled, generator, tell=tell)
    why = _why_not(recipe, local, start, reference)
    return (None, why) if why else (start, "")


def _shape(records: Split) -> str:
    height, width, channels = records.images.shape[1:]
    return f"{height} x {width} pixels in {'grey' if channels == 1 else 'colour'}"


class _Shown:
    """What the teacher saw last: minutes of work that the runs of a study share."""

    key: tuple[object, ...] | None = None
    images: PublicImages


def _shown(name: str, public: Split, reference: Split, tell: Tell) -> PublicImages:
    key = (name, public.images.shape, reference.images.tobytes())
    if _Shown.key != key:
        generator = KeyedGenerator.from_seed(0, "public images")
        _Shown.images = public_images(load_teacher(), public, reference.images, generator, tell)
        _Shown.key = key
    return _Shown.images


def _why_not(recipe: str, local: LocalSettings, start: Vector, reference: Split) -> str:
    """Why the start is not to be used, or nothing."""
    halves = halve(reference)
    settings = dataclasses.replace(local, student=f"{local.spec.precision}-cnn", trained="all")
    generator = KeyedGenerator.from_seed(0, "without public images")
    plain = train_plainly(settings, halves.calibration, _PLAIN_STEPS, generator)
    ours, theirs = (
        _correct(own, latents, halves.evaluation) for own, latents in ((local, start), (settings, plain))
    )
    count = len(halves.evaluation.images)
    error = math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / count)
    if ours >= theirs - 2 * error:
        return ""
    return (
        f"on {count} public reference records the start of the recipe {recipe} is right in {ours:.1%}, and a "
        f"student without it in {theirs:.1%}: what it learned from is not of this kind."
    )


def _correct(settings: LocalSettings, latents: Vector, records: Split) -> float:
    figures = measure(settings, latents, records)
    balanced = figures["balanced_accuracy"]
    return float(figures["accuracy"] or 0.0) if balanced is None else float(balanced)
