"""A study's folder at the coordinator, and what stands where in it.

``study.json``, ``reference.npz`` (public records, optional), ``fixed.npz`` (start, anchor, Fisher and
teacher, where the study has them), ``checkpoint.bin``, ``progress.jsonl`` (for whoever watches),
``final.npy`` (the released latents) and ``release/``. Where the study measures: ``measured.json`` and
``fisher.npy``.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from fedward.common.codec import Vector
from fedward.common.config import Study
from fedward.common.datasets import Split, read_split, save_npz
from fedward.common.errors import CheckpointRefused, OutputRefused, SettingRefused
from fedward.common.files import canonical_json, make_folder, read_bounded, refused_output, write_atomically
from fedward.common.instants import spelled, utc_now
from fedward.common.locks import only_holder
from fedward.common.npz_files import archive_bytes

_LIMIT = 64 << 20
START = "start"  # of the fixed vectors: what the first round starts from
PUBLISHED = "published.json"  # once the release stands in the coordinator's index
PROGRESS, _LOCK = "progress.jsonl", "study.lock"
_LOCK_SECONDS = 2.0  # a coordinator that is just ending may still be there


@dataclass(frozen=True)
class StudyFolder:
    """Paths and small files of a study's folder."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The last closed round."""
        return self.path / "checkpoint.bin"

    @property
    def release(self) -> Path:
        """The signed bundle."""
        return self.path / "release"

    @property
    def fixed(self) -> Path:
        """Vectors that are the same in every round."""
        return self.path / "fixed.npz"

    @property
    def final(self) -> Path:
        """The released latents, float32, as a numpy file: for the coordinator only."""
        return self.path / "final.npy"

    @property
    def measured(self) -> Path:
        """What the hospitals answered to the measurement behind the last round."""
        return self.path / "measured.json"

    @property
    def fisher(self) -> Path:
        """The private Fisher's diagonal, float32, as a numpy file: for a later study's EWC."""
        return self.path / "fisher.npy"

    def create(
        self, study: Study, reference: Split | None, fixed: Mapping[str, Vector] | None = None
    ) -> None:
        """Write the study's settings, public reference records and fixed vectors.

        Raises:
            OutputRefused: the folder holds a study already, or cannot be written.
        """
        self.check_free()
        make_folder(self.path)
        if reference is not None:
            save_npz(self.path / "reference.npz", reference)
        if fixed:
            write_atomically(self.fixed, archive_bytes(fixed))
        write_atomically(self.path / "study.json", canonical_json(study.to_dict()))

    def check_free(self) -> None:
        """Refuse a folder that holds a study.

        Raises:
            OutputRefused: it does.
        """
        if (self.path / "study.json").exists():
            raise OutputRefused(
                f"{self.path} holds a study already; go on with --resume or name another folder."
            )

    def study(self) -> Study:
        """The study's settings.

        Raises:
            CheckpointRefused: there is no study, or its file is damaged.
            SettingRefused: a setting is out of range.
        """
        file = self.path / "study.json"
        if not file.exists():
            raise CheckpointRefused(
                f"{self.path} holds no study; name the folder of one, or start without --resume."
            )
        try:
            return Study.from_dict(json.loads(read_bounded(file, _LIMIT)))
        except (ValueError, TypeError, RecursionError, SettingRefused) as error:
            raise CheckpointRefused(
                f"{file} is damaged ({error}); restore it, or start the study anew."
            ) from error

    def reference(self) -> Split | None:
        """The public reference records, if the study has any."""
        file = self.path / "reference.npz"
        return read_split(file) if file.exists() else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run the study as the only one; a coordinator that was killed holds nothing any more.

        Raises:
            OutputRefused: another process runs this study.
        """
        sentence = f"{self.path} is in use: another process runs this study; wait for its end, or stop it."
        with only_holder(self.path / _LOCK, _LOCK_SECONDS, sentence):
            yield

    @property
    def is_held(self) -> bool:
        """Whether a process runs this study now."""
        if not self.path.is_dir():
            return False
        try:
            with only_holder(self.path / _LOCK, 0.0, ""):
                return False
        except OutputRefused:
            return True

    def note(self, event: str, **fields: Any) -> None:
        """Append a line for whoever watches; it is no record of anything, so it is not synced."""
        line = canonical_json({"event": event, "time": spelled(utc_now()), **fields}) + b"\n"
        try:
            descriptor = os.open(self.path / PROGRESS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            with open(descriptor, "ab", buffering=0) as file:
                _append(file, line)
        except OSError as error:
            raise refused_output(self.path, error) from error


def _append(file: FileIO, line: bytes) -> None:
    """All of the line or nothing: on a full disk, half a line would spoil the one that follows it."""
    before = os.fstat(file.fileno()).st_size
    try:
        if file.write(line) == len(line):
            return
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.truncate(before)
        raise
