"""Before the first round: data found, hospitals' folders made, the study planned and written."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedward.client.hospital import create_hospital
from fedward.common.bundle import model_bytes, read_bundle
from fedward.common.codec import Vector
from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import (
    BundleRefused,
    CheckpointRefused,
    DatasetRefused,
    OutputRefused,
    SettingRefused,
)
from fedward.common.files import canonical_json, read_bounded, refused_output, write_atomically
from fedward.common.manifest import release_digest
from fedward.common.messages import ANCHOR, FISHER, TEACHER
from fedward.common.npz_files import archive_bytes
from fedward.common.randomness import KeyedGenerator
from fedward.common.trust import load_trust
from fedward.server.export import latents_of
from fedward.server.reference import EXPLANATION, fisher_diagonal, halve
from fedward.server.rounds import START
from fedward.server.study_folder import StudyFolder
from fedward.server.teacher import train_plainly
from fedward.simulations.options import Options, plan_study
from fedward.simulations.partitions import make_hospitals
from fedward.simulations.sources import find_dataset

OPTIONS = "simulation.json"
_LIMIT = 1 << 20
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
        return make_hospitals(
            self.dataset.train, self.options.partition, self.options.hospitals, self.options.seed
        )


def prepare(options: Options, out: Path, trust: Path | None) -> Simulation:
    """Make the run's folder.

    Raises:
        Refusal: data, settings or the release to continue from are refused, or the folder is in use; then
            nothing was written but folders.
    """
    folder = StudyFolder(out)
    _check_free(out)
    simulation = Simulation(options, find_dataset(options.dataset), folder, None)
    reference = _reference(options, simulation.dataset)
    simulation = Simulation(options, simulation.dataset, folder, reference)
    hospitals = simulation.hospitals
    parent = None if options.continue_from is None else _read_parent(Path(options.continue_from), trust)
    study = plan_study(options, simulation.dataset, hospitals, reference, parent and parent[0])
    fixed = _fixed(options, study, reference, parent and parent[1])
    _make_folder(out)
    for index, records in enumerate(hospitals):
        create_hospital(
            out / "hospitals" / str(index),
            study.hospitals[index].name,
            records,
            options.epsilon,
            options.delta,
            options.seed,
        )
    if fixed:
        write_atomically(folder.fixed, archive_bytes(fixed))
    write_atomically(
        out / OPTIONS, canonical_json({**options.to_dict(), "dataset_sha256": simulation.dataset.sha256})
    )
    folder.create(study, reference)
    return simulation


def reopen(out: Path) -> Simulation:
    """The run that `prepare` made, to go on with.

    Raises:
        CheckpointRefused: the folder holds no run, a damaged one, or its data set has changed.
    """
    file = out / OPTIONS
    if not file.exists():
        raise CheckpointRefused(f"{out} holds no run to resume; leave out --resume to start one.")
    try:
        values = json.loads(read_bounded(file, _LIMIT, refusal=CheckpointRefused))
        sha256 = values.pop("dataset_sha256")
        options = Options(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointRefused(f"{file} is damaged; start the run anew in another folder.") from error
    folder = StudyFolder(out)
    folder.study()
    dataset = find_dataset(options.dataset)
    if dataset.sha256 != sha256:
        raise CheckpointRefused(f"The data set {options.dataset} is not the one that {out} was started with.")
    return Simulation(options, dataset, folder, folder.reference())


def _check_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputRefused(f"{out} is a file; name a folder.")
    if (out / OPTIONS).exists() or (out / "study.json").exists():
        raise OutputRefused(f"{out} holds a run already; go on with --resume or name another folder.")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused_output(out, error) from error


def _reference(options: Options, dataset: ImageDataset) -> Split | None:
    """Public records: ``val`` (the data set's own validation split), ``none``, or another data set's."""
    if options.reference == "none":
        return None
    if options.reference == "val":
        return dataset.val
    other = find_dataset(options.reference)
    _check_same_task(other, dataset, options.reference)
    return other.val


def _check_same_task(other: ImageDataset, dataset: ImageDataset, name: str) -> None:
    same_shape = other.train.images.shape[1:] == dataset.train.images.shape[1:]
    if other.task != dataset.task or len(other.classes) != len(dataset.classes) or not same_shape:
        raise DatasetRefused(
            f"The reference data {name} have another task, classes or image shape than the study."
        )


def _read_parent(path: Path, trust: Path | None) -> tuple[tuple[str, int], tuple[dict[str, object], bytes]]:
    bundle = read_bundle(path, load_trust(trust))
    manifest = bundle.manifest
    return (release_digest(manifest), manifest["version"]), (manifest, model_bytes(bundle))


def _fixed(
    options: Options, study: Study, reference: Split | None, parent: tuple[dict[str, object], bytes] | None
) -> dict[str, Vector]:
    fixed: dict[str, Vector] = {}
    if parent is not None:
        fixed[START] = _parent_latents(study.local, *parent)
    if options.ewc_lambda > 0:
        records = _ewc_records(options, study.local, reference)
        fixed |= {ANCHOR: fixed[START], FISHER: fisher_diagonal(study.local, fixed[START], records)}
    if options.teacher == "reference":
        fixed[TEACHER] = _teacher(study, reference)
    return fixed


def _parent_latents(local: LocalSettings, manifest: dict[str, object], graph: bytes) -> Vector:
    for what, mine in (("student", local.student), ("classes", list(local.classes)), ("task", local.task)):
        if manifest[what] != mine:
            raise BundleRefused(
                f"The release to continue from has {what} {manifest[what]!r}, this study {mine!r}."
            )
    try:
        return latents_of(graph, local)
    except (KeyError, ValueError) as error:
        raise BundleRefused(
            f"The release to continue from is not of this study's student: {error}."
        ) from error


def _ewc_records(options: Options, local: LocalSettings, reference: Split | None) -> Split:
    """Public records of the earlier task: half A, so that half B stays unseen."""
    if options.ewc_reference is not None:
        reference = find_dataset(options.ewc_reference).val
    if reference is None:
        raise SettingRefused(f"--ewc-lambda needs reference data. {EXPLANATION}")
    if reference.images.shape[1:] != (local.height, local.width, local.channels):
        raise DatasetRefused("EWC's reference images have another shape than the study's.")
    return halve(reference).calibration


def _teacher(study: Study, reference: Split | None) -> Vector:
    if reference is None:
        raise SettingRefused(f"--teacher reference needs reference data. {EXPLANATION}")
    family = study.local.spec.family
    settings = LocalSettings.from_dict({**study.local.to_dict(), "student": f"fp32-{family}"})
    generator = KeyedGenerator.from_seed(study.seed or 0, "teacher")
    return train_plainly(settings, halve(reference).calibration, _TEACHER_STEPS, generator).astype(np.float32)
