"""The vectors of a request, unpacked; and the models that differences are to, kept by digest.

One file a model, ``<study's key>-<digest>.f32``: its float32 values, little-endian, whose SHA-256 is its
name. A study has at most two: the one that its last round trained from, and the one before, to which that
round is a difference if it is asked again.
"""

import hashlib
from pathlib import Path

import numpy as np

from fedward.common.codec import DIFFERENCES, Vector, decode, fixed_codec, plain_codec_of
from fedward.common.differences import decode_difference, replica_digest
from fedward.common.errors import PayloadRefused, ReplicaUnknown, RequestRefused
from fedward.common.files import make_folder, read_bounded, write_atomically
from fedward.common.messages import ANCHOR, FISHER, LATENTS, TEACHER, TrainRequest
from fedward.common.models import build_student, parameter_count

_KEY_DIGITS = 32


class Replicas:
    """The models that one hospital holds."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which is made with the first one."""
        self.folder = folder

    def unpack(self, request: TrainRequest) -> dict[str, Vector]:
        """The request's vectors, float32 (n,), exactly those that its settings ask for.

        Raises:
            RequestRefused: one is missing or not asked for.
            ReplicaUnknown: the model is the difference to one that is not held here.
            PayloadRefused: one does not decode, or the model is not the one that the request names.
        """
        _refuse_other_vectors(request)
        count = parameter_count(build_student(request.settings.spec))
        codec = fixed_codec(request.codec[0])
        found = {
            name: decode(payload, count, codec)
            for name, payload in request.vectors.items()
            if name != LATENTS
        }
        return {**found, LATENTS: self._model(request, count)}

    def keep(self, request: TrainRequest, model: Vector) -> None:
        """Keep the model that a request led to, synced, and of its study's others only its base.

        Raises:
            OutputRefused: it could not be written.
        """
        if request.replica is None:
            return
        make_folder(self.folder, 0o700)
        path = self._path(request.study, request.replica.digest)
        if not _is_whole(path, request.replica.digest, len(model)):
            write_atomically(path, model.astype("<f4").tobytes(), 0o600)
        self._drop(request.study, {path, self._path(request.study, request.replica.base)})

    def forget(self, study: str) -> None:
        """Remove a study's models."""
        self._drop(study, set())

    def _model(self, request: TrainRequest, count: int) -> Vector:
        payload, replica = request.vectors[LATENTS], request.replica
        if replica is None:
            if request.codec[0] in DIFFERENCES:
                raise PayloadRefused("A model that may be a difference names its base and its digest.")
            return decode(payload, count, request.codec[0])
        if replica.base:
            held = self._held(request.study, replica.base, count)
            model = decode_difference(payload, held, request.codec[0])
        else:
            model = decode(payload, count, plain_codec_of(payload))
        if replica_digest(model) != replica.digest:
            raise PayloadRefused("The model that came is not the one that the request names by its digest.")
        return model

    def _held(self, study: str, digest: str, count: int) -> Vector:
        data = _read(self._path(study, digest), count)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ReplicaUnknown(
                f"The model came as the difference to {digest[:16]}..., which this hospital does not hold: "
                "send the model in full."
            )
        return np.frombuffer(data, "<f4").astype(np.float32)

    def _path(self, study: str, digest: str) -> Path:
        return self.folder / f"{_key(study)}-{digest}.f32"

    def _drop(self, study: str, kept: set[Path]) -> None:
        for path in self.folder.glob(f"{_key(study)}-*.f32"):
            if path not in kept:
                path.unlink(missing_ok=True)


def _refuse_other_vectors(request: TrainRequest) -> None:
    expected = {LATENTS}
    expected |= {ANCHOR, FISHER} if request.settings.ewc_lambda > 0.0 else set()
    expected |= {TEACHER} if request.settings.distillation_alpha > 0.0 else set()
    if set(request.vectors) != expected:
        raise RequestRefused(
            f"The study's settings need {sorted(expected)}, the request has {sorted(request.vectors)}."
        )


def _key(study: str) -> str:
    return hashlib.sha256(study.encode()).hexdigest()[:_KEY_DIGITS]


def _read(path: Path, count: int) -> bytes:
    """A model's bytes; none where the file is missing or unreadable, which its digest then shows."""
    try:
        return read_bounded(path, 4 * count)
    except PayloadRefused:
        return b""


def _is_whole(path: Path, digest: str, count: int) -> bool:
    return hashlib.sha256(_read(path, count)).hexdigest() == digest
