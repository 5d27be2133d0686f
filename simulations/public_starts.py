"""Where the distilled recipe's start comes from: a file, or public images at hand; or why there is none."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import DatasetRefused
from fedward.common.randomness import KeyedGenerator
from fedward.server.public_images import PublicImages, public_images
from fedward.server.public_start import public_start
from fedward.server.public_teacher import load_teacher
from fedward.server.reference import halve, measure
from fedward.server.start_file import read_start_file
from fedward.server.teacher import train_plainly
from fedward.simulations.options import Options, local_settings
from fedward.simulations.recipes import DISTILLED, FROM_SCRATCH, RECIPES, sample_rate
from fedward.simulations.sources import find_dataset

Tell = Callable[[str], None]
AUTO = "mednist"  # grey; there is no colour set without a licence to ask for
_PLAIN_STEPS = 600
_FEWEST = 20  # labelled public images, below which nothing can be tuned or compared


def settle(
    options: Options, dataset: ImageDataset, reference: Split | None, tell: Tell
) -> tuple[Options, Vector | None]:
    """The options that a run is made with, and its start where it has a public one.

    The distilled recipe falls back to training from scratch, and says why, where there are no public images
    of the study's kind, or where what they gave is worse on half B of the reference records than a student
    that saw nothing but half A, beyond two standard errors.

    Raises:
        TeacherRefused: the public teacher is not installed, or is another.
        StartRefused, SettingRefused: the start or the student does not fit.
    """
    asked = options
    if options.recipe == DISTILLED and options.sample_rate == 1.0:
        options = dataclasses.replace(options, sample_rate=sample_rate(len(dataset.train.images)))
    local = local_settings(options, dataset, reference)
    if options.start is not None:
        return options, read_start_file(Path(options.start), local)[0]
    if options.recipe != DISTILLED:
        return options, None
    start, why = made(options, local, reference, tell)
    if start is not None and reference is not None:
        why = _why_not(local, start, reference)
    if not why:
        return options, start
    tell(f"Training from scratch instead: {why}")
    return _from_scratch(asked, why), None


def made(
    options: Options, local: LocalSettings, reference: Split | None, tell: Tell
) -> tuple[Vector | None, str]:
    """A public start, or None and the reason in a sentence."""
    if reference is None or len(reference.images) < _FEWEST:
        return None, f"the distilled recipe needs at least {_FEWEST} public reference records."
    try:
        public = find_dataset(AUTO if options.public == "auto" else options.public, local.height)
    except DatasetRefused as refusal:
        return None, f"there are no public images to distil on ({refusal})"
    if public.train.images.shape[1:] != reference.images.shape[1:]:
        return None, (
            f"the public images of {public.name} are {_shape(public.train)}, and the study's "
            f"{_shape(reference)}."
        )
    halves = halve(reference)
    images = _shown(public.name, public.train, halves.calibration, tell)
    generator = KeyedGenerator.from_seed(options.seed, "public start")
    return public_start(local, images, halves.calibration, generator, tell=tell), ""


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


def _why_not(local: LocalSettings, start: Vector, reference: Split) -> str:
    """Why the start is not to be used, or nothing."""
    halves = halve(reference)
    student = f"{local.spec.precision}-cnn"
    settings = dataclasses.replace(local, student=student, trained="all")
    generator = KeyedGenerator.from_seed(0, "without public images")
    plain = train_plainly(settings, halves.calibration, _PLAIN_STEPS, generator)
    with_start, without = (
        _correct(own, latents, halves.evaluation) for own, latents in ((local, start), (settings, plain))
    )
    count = len(halves.evaluation.images)
    error = math.sqrt((with_start * (1 - with_start) + without * (1 - without)) / count)
    if with_start >= without - 2 * error:
        return ""
    return (
        f"on {count} public reference records the distilled start is right in {with_start:.1%}, and a "
        f"student without it in {without:.1%}: the public images are not of this kind."
    )


def _correct(settings: LocalSettings, latents: Vector, records: Split) -> float:
    figures = measure(settings, latents, records)
    balanced = figures["balanced_accuracy"]
    return float(figures["accuracy"] or 0.0) if balanced is None else float(balanced)


def _from_scratch(options: Options, why: str) -> Options:
    """The same options, each of the distilled recipe's own back at its default."""
    plain, own = Options(), RECIPES[DISTILLED]
    back = {name: getattr(plain, name) for name, value in own.items() if getattr(options, name) == value}
    return dataclasses.replace(options, **back, recipe=FROM_SCRATCH, recipe_note=why)
