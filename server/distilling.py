"""A recipe's public start for a study, or the reason why there is none."""

import dataclasses
from collections.abc import Callable
from statistics import stdev

import numpy as np
import numpy.typing as npt

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split, fingerprint
from fedward.common.decision import decide
from fedward.common.metrics import balanced_accuracy
from fedward.common.randomness import KeyedGenerator
from fedward.server.imagenet_start import imagenet_start
from fedward.server.public_images import PublicImages, public_images
from fedward.server.public_start import public_start
from fedward.server.public_teacher import load_teacher
from fedward.server.recipes import check_family
from fedward.server.reference import Reference, halve, student_logits
from fedward.server.teacher import drawn_rows, train_plainly

Tell = Callable[[str], None]
Decisions = npt.NDArray[np.int64]
_PLAIN_STEPS = 600
_FEWEST = 20  # labelled public images, below which nothing can be tuned or compared
_FEWEST_OF_A_CLASS = 3  # in each half
_RESAMPLES = 400


def start_or_reason(
    recipe: str,
    local: LocalSettings,
    public: ImageDataset | None,
    reference: Split | None,
    generator: KeyedGenerator,
    tell: Tell,
) -> tuple[Vector | None, str]:
    """A public start for students of `local`, or None and why the study is to train from scratch.

    There is none without enough reference records (of every class, where an image has one), for public images
    of another shape or that are among the reference records, and where it is right less often on half B of
    the reference records than a student that saw nothing but half A, beyond two standard errors.

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
    halves = halve(reference)
    if why := _rare(local, halves):
        return None, why
    labelled = halves.calibration
    if public is None:
        start = imagenet_start(local, load_teacher(), labelled, generator)
    elif public.train.images.shape[1:] != reference.images.shape[1:]:
        shapes = _shape(public.train), _shape(reference)
        return None, f"the public images of {public.name} are {shapes[0]}, and the study's {shapes[1]}."
    elif shared := shared_images(public.train, reference):
        return None, f"{shared:,} images of {public.name} are reference records, which judge the start."
    else:
        images = _shown(public.train, labelled, tell)
        start = public_start(local, images, labelled, generator, tell=tell)
    why = _why_not(recipe, local, start, halves)
    return (None, why) if why else (start, "")


def shared_images(public: Split, records: Split) -> int:
    """How many of the public images are among the records, pixel by pixel."""
    known = {image.tobytes() for image in records.images}
    return sum(image.tobytes() in known for image in public.images)


def _rare(local: LocalSettings, halves: Reference) -> str:
    """Which class has too few reference records for either half to speak of it, in a sentence, or nothing."""
    if local.task == "multi-label":
        return ""
    for half in (halves.calibration, halves.evaluation):
        counts = np.bincount(half.labels, minlength=len(local.classes))
        if counts.min() < _FEWEST_OF_A_CLASS:
            return (
                f"a half of the public reference records has {counts.min()} of class "
                f"{local.classes[int(counts.argmin())]!r}, and needs at least {_FEWEST_OF_A_CLASS} of each."
            )
    return ""


def _shape(records: Split) -> str:
    height, width, channels = records.images.shape[1:]
    return f"{height} x {width} pixels in {'grey' if channels == 1 else 'colour'}"


class _Shown:
    """What the teacher saw last: minutes of work that the runs of a study share."""

    key: str | None = None
    images: PublicImages


def _shown(public: Split, labelled: Split, tell: Tell) -> PublicImages:
    key = fingerprint(public, labelled)
    if _Shown.key != key:
        generator = KeyedGenerator.from_seed(0, "public images")
        _Shown.images = public_images(load_teacher(), public, labelled.images, generator, tell)
        _Shown.key = key
    return _Shown.images


def _why_not(recipe: str, local: LocalSettings, start: Vector, halves: Reference) -> str:
    """Why the start is not to be used, or nothing."""
    settings = dataclasses.replace(local, student=f"{local.spec.precision}-cnn", trained="all")
    generator = KeyedGenerator.from_seed(0, "without public images")
    plain = train_plainly(settings, halves.calibration, _PLAIN_STEPS, generator)
    labels = halves.evaluation.labels
    ours, theirs = _decided(local, start, halves.evaluation), _decided(settings, plain, halves.evaluation)
    correct = balanced_accuracy(ours, labels), balanced_accuracy(theirs, labels)
    if correct[0] >= correct[1] - 2 * error_of_difference(ours, theirs, labels):
        return ""
    return (
        f"on {len(labels)} public reference records the start of the recipe {recipe} is right in "
        f"{correct[0]:.1%}, and a student without it in {correct[1]:.1%}: what it learned from is not of "
        "this kind."
    )


def _decided(settings: LocalSettings, latents: Vector, records: Split) -> Decisions:
    return decide(student_logits(settings, latents, records.images), settings.task)


def error_of_difference(ours: Decisions, theirs: Decisions, labels: Decisions) -> float:
    """Standard error of the difference of two balanced accuracies on the same records, by drawing these anew
    in pairs (bootstrap, Efron 1979): right whatever the classes' frequencies and the task.

    Args:
        ours, theirs: decisions, int64, of the labels' shape.
        labels: (n,) class indices, or (n, classes) of 0 and 1.
    """
    draws, found = KeyedGenerator.from_seed(0, "half B again"), []
    for _ in range(_RESAMPLES):
        rows = drawn_rows(draws, len(labels), len(labels))
        found.append(
            balanced_accuracy(ours[rows], labels[rows]) - balanced_accuracy(theirs[rows], labels[rows])
        )
    return stdev(found)
