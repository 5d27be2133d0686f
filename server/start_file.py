"""A public start as a file: latents for a student's first round, made once and used by many studies.

An npz of two members: ``start``, float32 (n,), and ``header``, canonical JSON with the student's shapes, the
digest of the latents, and where they come from.
"""

import json
from pathlib import Path

import numpy as np

from fedward.common.codec import Vector
from fedward.common.config import LocalSettings
from fedward.common.differences import replica_digest
from fedward.common.errors import DatasetRefused, StartRefused
from fedward.common.files import canonical_json, write_atomically
from fedward.common.models import build_student, parameter_count
from fedward.common.npz_files import archive_bytes, read_archive

_MOST_BYTES = 1 << 30
_SHAPES = ("student", "channels", "height", "width", "classes", "task")


def save_start(path: Path, settings: LocalSettings, latents: Vector, origin: str) -> None:
    """Write `latents` for students of `settings`' shapes; `origin` says in words what they were made from.

    Raises:
        OutputRefused: it cannot be written; a file that was there stays.
    """
    header = {**_shapes(settings), "origin": origin, "sha256": replica_digest(latents)}
    packed = np.frombuffer(canonical_json(header), np.uint8)
    write_atomically(path, archive_bytes({"start": latents, "header": packed}))


def read_start_file(path: Path, settings: LocalSettings) -> tuple[Vector, str]:
    """Latents for a student of `settings`, float32 (n,), and what they were made from.

    Raises:
        StartRefused: missing, damaged, changed, or of another student.
    """
    try:
        arrays = read_archive(path, ("start", "header"), _MOST_BYTES).arrays
        header = json.loads(arrays["header"].tobytes())
        digest, origin = str(header["sha256"]), str(header["origin"])
        given = {name: header[name] for name in _SHAPES}
    except DatasetRefused as refusal:
        raise StartRefused(f"The start cannot be used: {refusal}") from refusal
    except (KeyError, TypeError, ValueError) as error:
        raise StartRefused(f"{path} is no start; make one with --recipe distilled.") from error
    latents = arrays["start"]
    _check_shapes(path, given, settings)
    if latents.dtype != np.float32 or latents.shape != (parameter_count(build_student(settings.spec)),):
        raise StartRefused(f"{path} does not hold the latents of a {settings.student}; make it anew.")
    if replica_digest(latents) != digest or not np.isfinite(latents).all():
        raise StartRefused(f"{path} was changed after it was made: its digest is another; make it anew.")
    return latents, origin


def _shapes(settings: LocalSettings) -> dict[str, object]:
    values = settings.to_dict()
    return {name: values[name] for name in _SHAPES}


def _check_shapes(path: Path, given: dict[str, object], settings: LocalSettings) -> None:
    wanted = json.loads(canonical_json(_shapes(settings)))
    for name in _SHAPES:
        if given[name] != wanted[name]:
            raise StartRefused(f"{path} is a start with {name} {given[name]}, the study has {wanted[name]}.")
