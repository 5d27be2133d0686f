"""The vectors of a request, unpacked; and those of them that later rounds build on, kept by digest.

One file a vector, ``<study's key>-<SHA-256 of the file>.vector``: a model's float32 values, little-endian,
or a fixed vector as it came. A study has at most two models: the one that its last round trained from, and
the one before, to which that round is a difference if it is asked again.
"""

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from fedward.common.codec import DIFFERENCES, Payload, Vector, decode, fixed_codec, plain_codec_of
from fedward.common.differences import decode_difference, replica_digest
from fedward.common.errors import PayloadRefused, ReplicaUnknown, RequestRefused
from fedward.common.files import make_folder, read_bounded, write_atomically
from fedward.common.messages import ANCHOR, FISHER, LATENTS, TEACHER, TrainRequest, packed_digest
from fedward.common.models import build_student, parameter_count

_KEY_DIGITS = 32
_MOST_BYTES = 1 << 30  # of a file: a model of `MAXIMUM_COUNT` values


class Replicas:
    """The models and fixed vectors that one hospital holds."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which is made with the first one."""
        self.folder = folder

    def unpack(self, request: TrainRequest) -> dict[str, Vector]:
        """The request's vectors, float32 (n,), exactly those that its settings ask for.

        Raises:
            RequestRefused: one is missing or not asked for.
            ReplicaUnknown: it builds on a model or a vector that is not held here.
            PayloadRefused: one does not decode, or is not the one that the request names.
        """
        _refuse_other_vectors(request)
        count = parameter_count(build_student(request.settings.spec))
        codec = fixed_codec(request.codec[0])
        fixed = {name: decode(packed, count, codec) for name, packed in self._fixed(request).items()}
        return {**fixed, LATENTS: self._model(request, count)}

    def keep(self, request: TrainRequest, model: Vector) -> None:
        """Keep what later rounds build on, synced, and of the study's other vectors only the request's base.

        Raises:
            OutputRefused: it could not be written.
        """
        replica = request.replica
        if replica is None:
            return
        make_folder(self.folder, 0o700)
        came = [request.vectors[name].tobytes() for name in replica.fixed if name in request.vectors]
        for data in (model.astype("<f4").tobytes(), *came):
            digest = hashlib.sha256(data).hexdigest()
            if self._read(request.study, digest) is None:
                write_atomically(self._path(request.study, digest), data, 0o600)
        self._drop(request.study, {replica.digest, replica.base, *replica.fixed.values()})

    def forget(self, study: str) -> None:
        """Remove a study's vectors."""
        self._drop(study, set())

    def _fixed(self, request: TrainRequest) -> dict[str, Payload]:
        if request.replica is None:
            return {name: vector for name, vector in request.vectors.items() if name != LATENTS}
        found = {}
        for name, digest in request.replica.fixed.items():
            packed = request.vectors.get(name)
            if packed is None:
                packed = np.frombuffer(self._held(request.study, digest), np.uint8)
            elif packed_digest(packed) != digest:
                raise PayloadRefused(f"The {name} that came is not the one that the request names.")
            found[name] = packed
        return found

    def _model(self, request: TrainRequest, count: int) -> Vector:
        payload, replica = request.vectors[LATENTS], request.replica
        if replica is None:
            if request.codec[0] in DIFFERENCES:
                raise PayloadRefused("A model that may be a difference names its base and its digest.")
            return decode(payload, count, request.codec[0])
        if replica.base:
            base = _model_of(self._held(request.study, replica.base), count)
            model = decode_difference(payload, base, request.codec[0])
        else:
            model = decode(payload, count, plain_codec_of(payload))
        if replica_digest(model) != replica.digest:
            raise PayloadRefused("The model that came is not the one that the request names by its digest.")
        return model

    def _held(self, study: str, digest: str) -> bytes:
        data = self._read(study, digest)
        if data is None:
            raise ReplicaUnknown(
                f"The round builds on {digest[:16]}..., which this hospital does not hold: send the model in "
                "full."
            )
        return data

    def _read(self, study: str, digest: str) -> bytes | None:
        """What is kept under a digest; None where it is missing, unreadable or damaged."""
        try:
            data = read_bounded(self._path(study, digest), _MOST_BYTES)
        except PayloadRefused:
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def _path(self, study: str, digest: str) -> Path:
        return self.folder / f"{_key(study)}-{digest}.vector"

    def _drop(self, study: str, kept: set[str]) -> None:
        stay = {self._path(study, digest) for digest in kept}
        for path in self.folder.glob(f"{_key(study)}-*.vector"):
            if path not in stay:
                with contextlib.suppress(OSError):  # what cannot be removed harms nothing but the disk's room
                    path.unlink()


def _refuse_other_vectors(request: TrainRequest) -> None:
    expected = {LATENTS}
    expected |= {ANCHOR, FISHER} if request.settings.ewc_lambda > 0.0 else set()
    expected |= {TEACHER} if request.settings.distillation_alpha > 0.0 else set()
    came, replica = set(request.vectors), request.replica
    named = came if replica is None else {LATENTS, *replica.fixed}
    if named != expected or not {LATENTS} <= came <= expected:
        raise RequestRefused(
            f"The study's settings need {sorted(expected)}, the request has {sorted(came | named)}."
        )


def _model_of(data: bytes, count: int) -> Vector:
    if len(data) != 4 * count:
        raise PayloadRefused(
            f"The round builds on a model that does not have this student's {count} weights."
        )
    return np.frombuffer(data, "<f4").astype(np.float32)


def _key(study: str) -> str:
    return hashlib.sha256(study.encode()).hexdigest()[:_KEY_DIGITS]
