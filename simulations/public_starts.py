"""Where a run's public start comes from: a file, or public images at hand; or why there is none."""

from collections.abc import Callable
from pathlib import Path

from fedward.common.codec import Vector
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import DatasetRefused
from fedward.common.randomness import KeyedGenerator
from fedward.server.distilling import shared_images, start_or_reason
from fedward.server.recipes import DISTILLED, IMAGENET, PUBLIC_STARTS, back_to_scratch, check_family, sampled
from fedward.server.start_file import read_start_file
from fedward.simulations.options import Options, local_settings
from fedward.simulations.sources import find_dataset

Tell = Callable[[str], None]
AUTO = "mednist"  # grey; there is no colour set without a licence to ask for
# Public sets and those cut otherwise from the same images, which no comparison of pixels finds: MedNIST's
# chest radiographs are NIH's, as are ChestMNIST's.
_OF_ONE_COLLECTION = {"mednist": ("chestmnist",)}


def settle(
    options: Options, dataset: ImageDataset, reference: Split | None, tell: Tell
) -> tuple[Options, Vector | None]:
    """The options that a run is made with, and its start where it has a public one.

    A recipe with a public start falls back to training from scratch, and says why, where what it needs is
    not there or not of the study's kind (`start_or_reason`).

    Raises:
        TeacherRefused: the public teacher is not installed, or is another.
        StartRefused, SettingRefused: the start or the student does not fit.
    """
    asked, options = options, sampled(options, len(dataset.train.images))
    if options.start is not None:
        return options, read_start_file(Path(options.start), local_settings(options, dataset, reference))[0]
    if options.recipe not in PUBLIC_STARTS:
        return options, None
    start, why = _made(options, dataset, reference, tell)
    if start is not None:
        return options, start
    tell(f"Training from scratch instead: {why}")
    return back_to_scratch(asked, Options(), recipe_note=why), None


def _made(
    options: Options, dataset: ImageDataset, reference: Split | None, tell: Tell
) -> tuple[Vector | None, str]:
    local = local_settings(options, dataset, reference)
    check_family(options.recipe, local)
    generator = KeyedGenerator.from_seed(options.seed, "public start")
    if options.recipe == IMAGENET:
        return start_or_reason(IMAGENET, local, None, reference, generator, tell)
    try:
        public = find_dataset(AUTO if options.public == "auto" else options.public)
    except DatasetRefused as refusal:
        if options.public != "auto":
            raise
        return None, f"there are no public images to distil on ({refusal})"
    if dataset.name in _OF_ONE_COLLECTION.get(public.name, ()):
        return None, f"{public.name} has images of the collection that {dataset.name} was cut from."
    if shared := sum(shared_images(public.train, split) for split in (dataset.train, dataset.test)):
        return None, f"{shared:,} images of {public.name} are the study's own: they are not public."
    return start_or_reason(DISTILLED, local, public, reference, generator, tell)
