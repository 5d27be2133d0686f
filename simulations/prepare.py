"""Before the first round: data found, the study planned, and only then the run's folder made, whole."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedward.common.bundle import Bundle, model_bytes, read_bundle
from fedward.common.codec import Vector
from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import BundleRefused, DatasetRefused, SettingRefused
from fedward.common.manifest import release_digest
from fedward.common.messages import ANCHOR, FISHER, TEACHER
from fedward.common.randomness import KeyedGenerator
from fedward.common.trust import load_trust
from fedward.server.export import bits_of, latents_of, widths_of
from fedward.server.measuring import read_fisher
from fedward.server.mixed_precision import with_bits_within
from fedward.server.pruning import pruned
from fedward.server.recipes import sampled
from fedward.server.reference import EXPLANATION, fisher_diagonal, halve
from fedward.server.study_folder import START, StudyFolder
from fedward.server.teacher import train_plainly
from fedward.simulations.options import Options, plan_study
from fedward.simulations.partitions import make_hospitals
from fedward.simulations.public_starts import settle
from fedward.simulations.run_folder import Start, check_free, read_start, write_run
from fedward.simulations.sources import find_dataset

_TEACHER_STEPS = 600


@dataclass(frozen=True)
class Simulation:
    """A prepared run: its options, its data and its folder."""

    options: Options
    dataset: ImageDataset
    folder: StudyFolder
    reference: Split | None

    @property
    def hospitals(self) -> list[Split]:
        """The hospitals' training records."""
        return _hospitals(self.options, self.dataset)


def prepare(
    options: Options, out: Path, trust: Path | None, tell: Callable[[str], None] = lambda sentence: None
) -> Simulation:
    """Make the run's folder.

    Args:
        tell: takes a sentence about the progress of a public start, and why there is none.

    Raises:
        Refusal: data, settings or the release to continue from are refused, or the folder is in use or
            cannot be written; then nothing was written but empty folders.
    """
    check_free(out)
    dataset = find_dataset(options.dataset)
    reference = reference_records(options, dataset)
    hospitals = _hospitals(options, dataset)
    parent = (
        None if options.continue_from is None else read_bundle(Path(options.continue_from), load_trust(trust))
    )
    known = None if parent is None else (release_digest(parent.manifest), parent.manifest["version"])
    wanted = sampled(options, len(dataset.train.images))
    # Before a public start is made: what no study takes is not refused after minutes of work.
    study = plan_study(wanted, dataset, hospitals, reference, known)
    options, start = settle(options, dataset, reference, tell)
    if options != wanted:
        study = plan_study(options, dataset, hospitals, reference, known)
    local, released = _start(options, study.local, reference, parent)
    study = replace(study, local=local)
    fixed = _fixed(options, study, reference, released)
    if start is not None:
        fixed[START] = start
    write_run(out, Start.of(options, dataset, study, reference), study, hospitals, reference, fixed)
    return Simulation(options, dataset, StudyFolder(out), reference)


def reopen(out: Path) -> Simulation:
    """The run that `prepare` made, to go on with.

    Raises:
        CheckpointRefused: the folder holds no run, a damaged one, or its data set has changed.
    """
    start = read_start(out)
    folder = StudyFolder(out)
    reference = folder.reference()
    start.check(out, folder.study(), reference)
    return Simulation(start.options, start.dataset(), folder, reference)


def _hospitals(options: Options, dataset: ImageDataset) -> list[Split]:
    return make_hospitals(dataset.train, options.partition, options.hospitals, options.seed)


def reference_records(options: Options, dataset: ImageDataset) -> Split | None:
    """Public records: ``val`` (the data set's own validation split), ``none``, or another data set's."""
    if options.reference == "none":
        return None
    if options.reference == "val":
        records = dataset.val
    else:
        other = find_dataset(options.reference)
        _check_same_task(other, dataset, f"The reference data {options.reference}")
        records = other.val
    halve(records)  # refuses what the rounds would refuse
    return records


def _check_same_task(other: ImageDataset, dataset: ImageDataset, what: str) -> None:
    shapes = [_in_words(each) for each in (other, dataset)]
    if shapes[0] != shapes[1]:
        raise DatasetRefused(f"{what} do not fit the study: {shapes[0]}, where it has {shapes[1]}.")


def _in_words(dataset: ImageDataset) -> str:
    height, width, channels = dataset.train.images.shape[1:]
    return f"{dataset.task}, {len(dataset.classes)} classes, {_shape(height, width, channels)}"


def _shape(height: int, width: int, channels: int, **_: object) -> str:
    return f"{height} x {width} pixels, {'grey' if channels == 1 else 'colour'}"


def _start(
    options: Options, local: LocalSettings, reference: Split | None, parent: Bundle | None
) -> tuple[LocalSettings, Vector | None]:
    """Where the study starts, with the widths and bits that the student then has."""
    if parent is None:
        return local, None
    local, latents = _of_parent(local, parent)
    if reference is None:
        return local, latents
    public = halve(reference).calibration
    if options.prune > 0:
        local, latents = pruned(local, latents, public, options.prune)
    if options.model_bytes is not None:
        local = with_bits_within(local, latents, public, options.model_bytes)
    return local, latents


def _fixed(
    options: Options, study: Study, reference: Split | None, start: Vector | None
) -> dict[str, Vector]:
    fixed: dict[str, Vector] = {}
    if start is not None:
        fixed[START] = start
    if options.ewc_lambda > 0:
        fixed |= {ANCHOR: fixed[START], FISHER: _fisher(options, study.local, fixed[START], reference)}
    if options.teacher == "reference":
        fixed[TEACHER] = _teacher(study, reference)
    return fixed


def _of_parent(local: LocalSettings, parent: Bundle) -> tuple[LocalSettings, Vector]:
    """`local` with the widths and bits of the release, and its latents."""
    manifest = parent.manifest
    for what, theirs, mine in (
        ("student", manifest["student"], local.student),
        ("classes", ", ".join(manifest["classes"]), ", ".join(local.classes)),
        ("task", manifest["task"], local.task),
        ("images", _shape(**manifest["preprocessing"]), _shape(**local.to_dict())),
    ):
        if theirs != mine:
            raise BundleRefused(f"The release to continue from has {what} {theirs}, this study {mine}.")
    try:
        graph = model_bytes(parent)
        local = replace(local, widths=widths_of(graph, local.spec))
        local = replace(local, bits=bits_of(graph, local.spec))
        latents = latents_of(graph, local)
    except Exception as error:  # what is no ONNX at all raises protobuf's own errors
        raise BundleRefused(
            f"The release to continue from does not hold the weights of a {local.student}: {error}."
        ) from error
    if not np.isfinite(latents).all():
        raise BundleRefused("The release to continue from holds weights that are no finite numbers.")
    return local, latents


def _fisher(options: Options, local: LocalSettings, latents: Vector, reference: Split | None) -> Vector:
    """Of an earlier study's hospitals, where it left one under privacy; else of public records."""
    if options.ewc_fisher is not None:
        return read_fisher(Path(options.ewc_fisher), len(latents))
    return fisher_diagonal(local, latents, _ewc_records(options, local, reference))


def _ewc_records(options: Options, local: LocalSettings, reference: Split | None) -> Split:
    """Public records of the earlier task: half A, so that half B stays unseen."""
    if options.ewc_reference is not None:
        other = find_dataset(options.ewc_reference)
        shape = (*other.train.images.shape[1:], other.task, len(other.classes))
        if shape != (local.height, local.width, local.channels, local.task, len(local.classes)):
            raise DatasetRefused(
                f"EWC's reference data {options.ewc_reference} do not fit the study: {_in_words(other)}."
            )
        reference = other.val
    if reference is None:
        raise SettingRefused(f"--ewc-lambda needs reference data. {EXPLANATION}")
    return halve(reference).calibration


def _teacher(study: Study, reference: Split | None) -> Vector:
    if reference is None:
        raise SettingRefused(f"--teacher reference needs reference data. {EXPLANATION}")
    network = study.local.spec.network
    settings = replace(study.local, student=f"fp32-{network}", bits=None)
    generator = KeyedGenerator.from_seed(study.seed or 0, "teacher")
    return train_plainly(settings, halve(reference).calibration, _TEACHER_STEPS, generator).astype(np.float32)
