"""A run's folder: free before, made whole or not at all, and known again when the run is resumed.

``simulation.json`` is written last. It holds the options and the digests of what the run was started with,
under a SHA-256 of its own, so that a resumed run is the run that was started.
"""

import contextlib
import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedward.client.hospital import create_hospital
from fedward.common.codec import Vector
from fedward.common.config import Study
from fedward.common.datasets import ImageDataset, Split, fingerprint
from fedward.common.errors import CheckpointRefused, OutputRefused, Refusal
from fedward.common.files import (
    canonical_json,
    parse_canonical,
    read_bounded,
    refused_output,
    sync_folder,
    write_atomically,
)
from fedward.server.checkpoint import study_digest
from fedward.server.study_folder import StudyFolder
from fedward.simulations.options import Options
from fedward.simulations.sources import find_dataset

OPTIONS, METRICS, REPORT, HOSPITALS = "simulation.json", "metrics.json", "report.html", "hospitals"
PROGRESS, FLOWER = "progress.jsonl", "flower"
_LIMIT = 1 << 20


def _own_names(out: Path) -> set[str]:
    folder = StudyFolder(out)
    paths = (folder.checkpoint, folder.release, folder.fixed, folder.final, folder.measured, folder.fisher)
    names = {OPTIONS, METRICS, REPORT, HOSPITALS, PROGRESS, FLOWER, "study.json", "reference.npz"}
    return names | {path.name for path in paths}


@dataclass(frozen=True)
class Start:
    """What a run was started with.

    Attributes:
        options: the person's.
        dataset_name: what `find_dataset` takes to find the same data again; ``auto`` is resolved.
        dataset_source: where the data were found at the start, for a person.
        dataset_sha256, study_sha256: digests.
        reference_sha256: fingerprint of the public reference records, or None.
    """

    options: Options
    dataset_name: str
    dataset_source: str
    dataset_sha256: str
    study_sha256: str
    reference_sha256: str | None

    @classmethod
    def of(cls, options: Options, dataset: ImageDataset, study: Study, reference: Split | None) -> "Start":
        """The start of a new run."""
        # Where auto found no data set, a resumed run must not go looking for it again.
        name = dataset.name if options.dataset == "auto" else options.dataset
        records = None if reference is None else fingerprint(reference)
        return cls(options, name, dataset.source, dataset.sha256, study_digest(study), records)

    def to_bytes(self) -> bytes:
        """As it stands in ``simulation.json``."""
        body = dataclasses.asdict(self)
        return canonical_json({**body, "sha256": hashlib.sha256(canonical_json(body)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Start":
        """The inverse of `to_bytes`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: not what `to_bytes` wrote.
        """
        body = parse_canonical(data)
        digest = body.pop("sha256")
        if digest != hashlib.sha256(canonical_json(body)).hexdigest():
            raise ValueError("its digest is another")
        return cls(**{**body, "options": Options(**body["options"])})

    def check(self, out: Path, study: Study, reference: Split | None) -> None:
        """Refuse a folder whose study or reference records are not those of the start.

        Raises:
            CheckpointRefused: one of them was changed, or belongs to another run.
        """
        if study_digest(study) != self.study_sha256:
            raise CheckpointRefused(f"{out / 'study.json'} is not the study that this run was started with.")
        if (None if reference is None else fingerprint(reference)) != self.reference_sha256:
            raise CheckpointRefused(
                f"{out / 'reference.npz'} does not hold the records that this run was started with."
            )

    def dataset(self) -> ImageDataset:
        """The data set of the start.

        Raises:
            CheckpointRefused: there is another one under its name now.
        """
        found = find_dataset(self.dataset_name)
        if found.sha256 != self.dataset_sha256:
            raise CheckpointRefused(
                f"The data set {self.dataset_name} is not the one that this run was started with: put that "
                "one back, or start a new run."
            )
        return dataclasses.replace(found, source=self.dataset_source)


def check_free(out: Path) -> None:
    """Refuse a folder that holds a run, a path that is no folder, or a place that may not be written.

    Raises:
        OutputRefused: one of these.
    """
    try:
        taken = sorted(_own_names(out) & set(os.listdir(out)))
    except FileNotFoundError:
        _check_writable(_nearest(out), out)
        return
    except OSError as error:
        if os.path.isfile(out):
            raise OutputRefused(f"{out} is a file; name a folder.") from error
        raise refused_output(out, error) from error
    if OPTIONS in taken:
        raise OutputRefused(f"{out} holds a run already; go on with --resume or name another folder.")
    if taken:
        raise OutputRefused(f"{out} holds {taken[0]} already, perhaps of a broken run; name another folder.")
    _check_writable(out, out)


def _nearest(out: Path) -> Path:
    return next((parent for parent in out.absolute().parents if parent.exists()), Path("/"))


def _check_writable(folder: Path, out: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputRefused(f"{out} cannot be written: {folder} may not be; name another place.")


def write_run(
    out: Path,
    start: Start,
    study: Study,
    hospitals: list[Split],
    reference: Split | None,
    fixed: Mapping[str, Vector],
) -> None:
    """Make the run in a draft folder inside `out`, then move it in, ``simulation.json`` last.

    Raises:
        Refusal: it cannot be written; what was written is removed.
    """
    draft, moved = out / f".draft-{secrets.token_hex(8)}", list[Path]()
    try:
        draft.mkdir(parents=True)
        _write(draft, start, study, hospitals, reference, fixed)
        for path in sorted(draft.iterdir(), key=lambda path: path.name == OPTIONS):
            moved.append(path.rename(out / path.name))
        sync_folder(out)
    except BaseException as error:
        for path in moved:
            _remove(path)
        _remove(draft)
        with contextlib.suppress(OSError):
            out.rmdir()  # only where nothing else is in it
        if isinstance(error, OSError):
            raise refused_output(out, error) from error
        if isinstance(error, OutputRefused):
            raise OutputRefused(str(error).replace(str(draft), str(out))) from error
        raise
    _remove(draft)


def _write(
    draft: Path,
    start: Start,
    study: Study,
    hospitals: list[Split],
    reference: Split | None,
    fixed: Mapping[str, Vector],
) -> None:
    options = start.options
    for index, records in enumerate(hospitals):
        name = study.hospitals[index].name
        folder = draft / HOSPITALS / str(index)
        classes = len(study.local.classes)
        create_hospital(folder, name, records, options.epsilon, options.delta, options.seed, classes)
    StudyFolder(draft).create(study, reference, fixed)
    write_atomically(draft / OPTIONS, start.to_bytes())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_start(out: Path) -> Start:
    """What the run in `out` was started with.

    Raises:
        CheckpointRefused: the folder holds no run, or its ``simulation.json`` is damaged.
    """
    file = out / OPTIONS
    if not os.path.exists(file):
        raise CheckpointRefused(f"{out} holds no run to resume; leave out --resume to start one.")
    data = read_bounded(file, _LIMIT, refusal=CheckpointRefused)
    try:
        return Start.from_bytes(data)
    except (ValueError, TypeError, KeyError, AttributeError, Refusal) as error:
        raise CheckpointRefused(f"{file} is damaged; start the run anew in another folder.") from error
