"""The one question behind a study's last round, and its answer (`fedward.common.measurement`).

What is asked follows from the settings that the hospital saw in round 1, never from the question itself. The
latents travel as fp32, so that what is measured is the release's weights to the bit. Each part of the answer
is one vector of whole numbers, little-endian int64 as uint8: sums of them are exact in any order.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedward.common.codec import Payload
from fedward.common.config import LocalSettings
from fedward.common.errors import PayloadRefused, RequestRefused
from fedward.common.files import canonical_json
from fedward.common.measurement import measured_sizes, measurement_round
from fedward.common.message_parts import (
    CONFIG,
    LATENTS,
    MODEL,
    addressed,
    bounded,
    checked_anchor,
    parsed_header,
    read_header,
    read_vectors,
    request_anchor,
    typed,
)
from fedward.common.setting_checks import check_text

MEASURE = "query.measure"  # Flower's type of the message
MEASURED = "measured"
CODEC = "fp32"
_REPLY_FIELDS = {"study", "round", "hospital", "num_examples", "anchor"}
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MeasureRequest:
    """What a coordinator asks of a hospital once, after the last round.

    Attributes:
        study: the study's name.
        settings: the study's, which say what is measured and under which noise.
        latents: packed `CODEC`: the released model.
        anchor: of this hospital's last reply, or empty; no part of the content.
    """

    study: str
    settings: LocalSettings
    latents: Payload
    anchor: str = ""

    @property
    def server_round(self) -> int:
        """The measurement's number among the study's rounds."""
        return measurement_round(self.settings)

    @property
    def content_digest(self) -> str:
        """SHA-256 over all that shapes the work, in hex."""
        packed = hashlib.sha256(self.latents.tobytes()).hexdigest()
        return hashlib.sha256(canonical_json({**self._header(), "latents": packed})).hexdigest()

    def _header(self) -> dict[str, object]:
        return {"study": self.study, "round": self.server_round, "settings": self.settings.to_dict()}

    def to_records(self) -> RecordDict:
        """The Flower content of the message."""
        config = ConfigRecord({"measure": canonical_json(self._header())})
        content = RecordDict({MODEL: ArrayRecord({LATENTS: Array(self.latents)}), CONFIG: config})
        return addressed(content, self.anchor)

    @classmethod
    def from_records(cls, content: RecordDict) -> "MeasureRequest":
        """The inverse of `to_records`.

        Raises:
            PayloadRefused: records missing or malformed.
            SettingRefused: settings, study name or round out of range.
            RequestRefused: the settings ask for no measurement.
        """
        header = read_header(content, "measure", {"study", "round", "settings"})
        settings = LocalSettings.from_dict(header["settings"])
        check_text("A message's study", header["study"])
        if not settings.measures:
            raise RequestRefused("A measurement is asked for, but the study's settings name none.")
        number = measurement_round(settings)
        bounded(header, "round", int, number, number)
        vectors = read_vectors(content, MODEL)
        if set(vectors) != {LATENTS}:
            raise PayloadRefused(f"A measurement is of one packed model, not of {sorted(vectors)}.")
        return cls(typed(header, "study", str), settings, vectors[LATENTS], request_anchor(content))


@dataclass(frozen=True)
class MeasureReply:
    """A hospital's one answer: noised whole numbers by kind, and public fields.

    Attributes:
        study, server_round: as they were asked.
        hospital, num_examples: as they were enrolled.
        measured: kind -> int64 (n,).
        anchor: of the last charge in the hospital's budget ledger.
    """

    study: str
    server_round: int
    hospital: str
    num_examples: int
    measured: dict[str, Ints]
    anchor: str

    def _header(self) -> dict[str, object]:
        return {
            "study": self.study,
            "round": self.server_round,
            "hospital": self.hospital,
            "num_examples": self.num_examples,
            "anchor": self.anchor,
        }

    def to_records(self) -> RecordDict:
        """The Flower content of the answer."""
        packed = {kind: Array(_packed(values)) for kind, values in sorted(self.measured.items())}
        config = ConfigRecord({"reply": canonical_json(self._header())})
        return RecordDict({MEASURED: ArrayRecord(packed), CONFIG: config})

    def to_bytes(self) -> bytes:
        """All of the answer as a hospital keeps it: a header with kinds and sizes, a newline, the values."""
        kinds = sorted(self.measured)
        header = {**self._header(), MEASURED: [[kind, len(self.measured[kind])] for kind in kinds]}
        values = b"".join(_packed(self.measured[kind]).tobytes() for kind in kinds)
        return canonical_json(header) + b"\n" + values

    @classmethod
    def from_bytes(cls, data: bytes) -> "MeasureReply":
        """The inverse of `to_bytes`.

        Raises:
            PayloadRefused: no answer of this version.
        """
        head, _, values = data.partition(b"\n")  # canonical JSON has no newline in it
        header = parsed_header(head, "reply", {*_REPLY_FIELDS, MEASURED})
        measured, start = {}, 0
        for kind, count in typed(header, MEASURED, list):
            measured[kind] = _unpacked(np.frombuffer(values[start : start + 8 * count], np.uint8), count)
            start += 8 * count
        return cls._from(header, measured)

    @classmethod
    def from_records(cls, content: RecordDict, settings: LocalSettings) -> "MeasureReply":
        """The inverse of `to_records`, if it answers what `settings` ask.

        Raises:
            PayloadRefused: records missing or malformed, or other parts or sizes than were asked for.
        """
        header, packed = read_header(content, "reply", _REPLY_FIELDS), read_vectors(content, MEASURED)
        sizes = measured_sizes(settings)
        if set(packed) != set(sizes):
            raise PayloadRefused(f"The answer holds {sorted(packed)}, where {sorted(sizes)} were asked for.")
        return cls._from(header, {kind: _unpacked(packed[kind], size) for kind, size in sizes.items()})

    @classmethod
    def _from(cls, header: dict[str, object], measured: dict[str, Ints]) -> "MeasureReply":
        return cls(
            study=typed(header, "study", str),
            server_round=typed(header, "round", int),
            hospital=typed(header, "hospital", str),
            num_examples=typed(header, "num_examples", int),
            measured=measured,
            anchor=checked_anchor(header["anchor"]),
        )


def _packed(values: Ints) -> Payload:
    return np.frombuffer(values.astype("<i8").tobytes(), np.uint8)


def _unpacked(packed: Payload, count: int) -> Ints:
    if len(packed) != 8 * count:
        raise PayloadRefused(f"A part of the answer has {len(packed)} bytes, where {8 * count} were due.")
    return np.frombuffer(packed.tobytes(), "<i8").astype(np.int64)
