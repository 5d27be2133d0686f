"""Flower messages of a study: record keys, and requests and replies to and from `RecordDict`.

A round is one TRAIN message to each hospital and one reply. Every vector travels as one packed uint8 array
(`fedward.common.codec`). A failure travels as a named refusal (Flower `Error`, code `REFUSED`), whose text
holds public fields only.
"""

import hashlib
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedward.common.codec import Payload, codec_id
from fedward.common.config import LocalSettings, check_text
from fedward.common.errors import PayloadRefused, Refusal, SettingRefused
from fedward.common.files import canonical_json, parse_canonical

MODEL, UPDATE, CONFIG = "model", "update", "config"
LATENTS, ANCHOR, FISHER, TEACHER = "latents", "anchor", "fisher", "teacher"
REFUSED = 100  # Flower leaves codes from 100 to applications


@dataclass(frozen=True)
class TrainRequest:
    """What a coordinator asks of a hospital in one round.

    Attributes:
        study: the study's name.
        server_round: from 1.
        settings: the public constants that every hospital of the study agreed to.
        learning_rate: of this round.
        codec: how `vectors` are packed and how the reply is to be packed: (downlink, uplink).
        vectors: packed `LATENTS`, and where the study has them `ANCHOR`, `FISHER`, `TEACHER`.
    """

    study: str
    server_round: int
    settings: LocalSettings
    learning_rate: float
    codec: tuple[str, str]
    vectors: dict[str, Payload]

    @property
    def content_digest(self) -> str:
        """SHA-256 over all of the request in hex: identifies the round's content in a ledger."""
        packed = {name: hashlib.sha256(vector.tobytes()).hexdigest() for name, vector in self.vectors.items()}
        return hashlib.sha256(canonical_json({**self._header(), "vectors": packed})).hexdigest()

    def _header(self) -> dict[str, object]:
        return {
            "study": self.study,
            "round": self.server_round,
            "settings": self.settings.to_dict(),
            "learning_rate": self.learning_rate,
            "codec": list(self.codec),
        }

    def to_records(self) -> RecordDict:
        """The Flower content of the TRAIN message."""
        arrays = ArrayRecord({name: Array(vector) for name, vector in self.vectors.items()})
        return RecordDict({MODEL: arrays, CONFIG: ConfigRecord({"request": canonical_json(self._header())})})

    @classmethod
    def from_records(cls, content: RecordDict) -> "TrainRequest":
        """The inverse of `to_records`.

        Raises:
            PayloadRefused: records missing or malformed.
            SettingRefused: settings, study name, round or learning rate out of range.
            UnknownName: a codec that does not exist.
        """
        header = _header(content, "request", {"study", "round", "settings", "learning_rate", "codec"})
        settings = LocalSettings.from_dict(header["settings"])
        check_text("A message's study", header["study"])
        return cls(
            study=_typed(header, "study", str),
            server_round=_bounded(header, "round", int, 1, settings.rounds),
            settings=settings,
            learning_rate=float(_bounded(header, "learning_rate", float, 1e-12, 1e4)),
            codec=_codecs(header["codec"]),
            vectors=_vectors(content, MODEL),
        )


@dataclass(frozen=True)
class TrainReply:
    """A hospital's one reply to a round: the noised update and public fields."""

    study: str
    server_round: int
    hospital: str
    num_examples: int
    codec: str
    update: Payload

    def to_records(self) -> RecordDict:
        """The Flower content of the reply."""
        header = {
            "study": self.study,
            "round": self.server_round,
            "hospital": self.hospital,
            "num_examples": self.num_examples,
            "codec": self.codec,
        }
        config = ConfigRecord({"reply": canonical_json(header)})
        return RecordDict({UPDATE: ArrayRecord({LATENTS: Array(self.update)}), CONFIG: config})

    @classmethod
    def from_records(cls, content: RecordDict) -> "TrainReply":
        """The inverse of `to_records`.

        Raises:
            PayloadRefused: records missing or malformed.
        """
        header = _header(content, "reply", {"study", "round", "hospital", "num_examples", "codec"})
        vectors = _vectors(content, UPDATE)
        if set(vectors) != {LATENTS}:
            raise PayloadRefused(f"A reply carries one packed update, not {sorted(vectors)}.")
        return cls(
            study=_typed(header, "study", str),
            server_round=_typed(header, "round", int),
            hospital=_typed(header, "hospital", str),
            num_examples=_typed(header, "num_examples", int),
            codec=_typed(header, "codec", str),
            update=vectors[LATENTS],
        )


def _header(content: RecordDict, key: str, names: set[str]) -> dict[str, object]:
    try:
        value = parse_canonical(cast(bytes, content.config_records[CONFIG][key]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PayloadRefused(
            f"A message carries no readable {key}; its sender is of another version."
        ) from error
    if not isinstance(value, dict) or set(value) != names:
        raise PayloadRefused(f"A message's {key} has other fields than this version's.")
    return value


def _codecs(value: object) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        raise PayloadRefused("A message's field codec is not the names of two codecs.")
    names = str(value[0]), str(value[1])
    for name in names:
        codec_id(name)  # refused here, before anything is charged
    return names


def _typed(header: dict, name: str, kind: type):  # type: ignore[no-untyped-def, type-arg]
    value = header[name]
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
        raise PayloadRefused(f"A message's field {name} is not of type {kind.__name__}.")
    return value


def _bounded(header: dict, name: str, kind: type, low: float, high: float):  # type: ignore[no-untyped-def, type-arg]
    value = _typed(header, name, kind)
    if not low <= value <= high:
        raise SettingRefused(f"A message's field {name} must be from {low:g} to {high:g}.")
    return value


def _vectors(content: RecordDict, key: str) -> dict[str, Payload]:
    try:
        record = content.array_records[key]
        vectors = {name: array.numpy() for name, array in record.items()}
    except Exception as error:  # on hostile bytes numpy lets out errors of its tokenizer, zip and allocator
        raise PayloadRefused(f"A message carries no readable {key}.") from error
    for name, vector in vectors.items():
        if not isinstance(vector, np.ndarray) or vector.dtype != np.uint8 or vector.ndim != 1:
            raise PayloadRefused(f"A message's {name} is not one packed uint8 array.")
    return vectors


def wire_bytes(content: RecordDict) -> int:
    """Bytes of a message's arrays and configuration, as they travel."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    values = [value for record in content.config_records.values() for value in record.values()]
    return arrays + sum(len(value) for value in values if isinstance(value, bytes))


def refusal_reply(refusal: Refusal, request: Message) -> Message:
    """A reply that carries a refusal's public name and sentence."""
    return Message(Error(REFUSED, f"{refusal.name}: {refusal}"), reply_to=request)


def refusal_text(message: Message) -> tuple[str, str]:
    """(name, sentence) of a reply's error; other errors than refusals are told by their code only."""
    reason = message.error.reason or ""
    name, separator, sentence = reason.partition(": ")
    if message.error.code == REFUSED and separator:
        return name, sentence
    return (
        "HospitalFailed",
        f"The hospital's app failed (Flower error {message.error.code}); see its own log.",
    )
