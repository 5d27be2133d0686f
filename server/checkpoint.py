"""What a coordinator must not lose: the global model after each round, written whole or not at all.

File: magic ``FWDCKPT1``, SHA-256 of the rest (32 bytes), then an npz with the arrays and a JSON header.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedward.common.codec import Vector
from fedward.common.config import Study
from fedward.common.errors import CheckpointRefused
from fedward.common.files import canonical_json, read_bounded, write_atomically

_MAGIC = b"FWDCKPT1"
_LIMIT = 1 << 32


@dataclass
class Progress:
    """The coordinator's state between two rounds.

    Attributes:
        server_round: rounds that are closed.
        latents: the global model, float32 (n,).
        momentum: the server optimizer's velocity, float32 (n,).
        average: sum of the latents after the rounds that the release averages, float64 (n,).
        history: one row a closed round, as metrics.json's ``rounds``.
        anchors: of each hospital's last reply, by its name: sent back with the next request, and released.
        replica: what hospitals unpacked in the last closed round, float32 (n,), where models travel as
            differences; else None.
        held: of each hospital that said so, by its name, the digest of the model that it holds.
    """

    server_round: int
    latents: Vector
    momentum: Vector
    average: np.ndarray
    history: list[dict[str, Any]] = field(default_factory=list)
    anchors: dict[str, str] = field(default_factory=dict)
    replica: Vector | None = None
    held: dict[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, latents: Vector) -> "Progress":
        """Before the first round."""
        return cls(0, latents, np.zeros_like(latents), np.zeros(len(latents), np.float64))


def study_digest(study: Study) -> str:
    """SHA-256 of the study's canonical JSON."""
    return hashlib.sha256(canonical_json(study.to_dict())).hexdigest()


def save_checkpoint(path: Path, progress: Progress, study: Study) -> None:
    """Write `progress` atomically and synced.

    Raises:
        OutputRefused: the folder is full or read-only; the previous checkpoint stays.
    """
    header = {
        "study": study_digest(study),
        "round": progress.server_round,
        "history": progress.history,
        "anchors": progress.anchors,
        **({"held": progress.held} if progress.held else {}),
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        header=np.frombuffer(canonical_json(header), np.uint8),
        latents=progress.latents,
        momentum=progress.momentum,
        average=progress.average,
        **({} if progress.replica is None else {"replica": progress.replica}),  # type: ignore[arg-type]
    )
    body = buffer.getvalue()
    write_atomically(path, _MAGIC + hashlib.sha256(body).digest() + body)


def load_checkpoint(path: Path, study: Study) -> Progress:
    """Read what `save_checkpoint` wrote.

    Raises:
        CheckpointRefused: missing, cut short, damaged, or of another study.
    """
    if not path.exists():
        raise CheckpointRefused(f"There is no checkpoint at {path}; start the study without --resume.")
    data = read_bounded(path, _LIMIT, refusal=CheckpointRefused)
    body = data[len(_MAGIC) + 32 :]
    if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(body).digest() != data[len(_MAGIC) :][:32]:
        raise CheckpointRefused(
            f"{path} is cut short or damaged; restore it from a copy, or start the study anew."
        )
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            progress = Progress(
                header["round"],
                arrays["latents"],
                arrays["momentum"],
                arrays["average"],
                header["history"],
                dict(header["anchors"]),
                arrays.get("replica"),
                dict(header.get("held", {})),
            )
            digest = header["study"]
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointRefused(
            f"{path} is not a checkpoint of this version; start the study anew."
        ) from error
    if digest != study_digest(study):
        raise CheckpointRefused(f"{path} is of another study; name that study's folder, or start anew.")
    return progress
