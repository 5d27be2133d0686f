"""Flower messages of a study: record keys, and requests and replies to and from `RecordDict`.

A round is one TRAIN message to each hospital and one reply. Every vector travels as one packed uint8 array
(`fedward.common.codec`). A failure travels as a named refusal (Flower `Error`, code `REFUSED`), whose text
holds public fields only. A reply carries an anchor of the hospital's budget ledger, which only the hospital
can make or read (`fedward.client.anchors`); the next request brings the last one back.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedward.common.codec import Payload, codec_id
from fedward.common.config import LocalSettings, check_text
from fedward.common.errors import PayloadRefused, Refusal, SettingRefused
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.reply_codes import NO_DAEMON, NOT_APPROVED, REFUSED

MODEL, UPDATE, CONFIG = "model", "update", "config"
LATENTS, ANCHOR, FISHER, TEACHER = "latents", "anchor", "fisher", "teacher"
LEDGER_ANCHOR = "ledger_anchor"  # in a request, beside the header that all hospitals get
# What a hospital's task runner says by itself; the words are the coordinator's own.
_RELAYED = {
    NOT_APPROVED: ("BundleNotApproved", "The hospital has not approved the bundle that the run came with."),
    NO_DAEMON: ("DaemonSilent", "The hospital's daemon did not answer in time."),
}
_ANCHOR_TOKEN = re.compile(r"([0-9a-f]{48}:[0-9a-f]{64}:[0-9a-f]{64})?")


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
        anchor: of this hospital's last reply, or empty. It is no part of the content: every hospital's is
            another, and a round that is asked again may bring a newer one.
    """

    study: str
    server_round: int
    settings: LocalSettings
    learning_rate: float
    codec: tuple[str, str]
    vectors: dict[str, Payload]
    anchor: str = ""

    @property
    def content_digest(self) -> str:
        """SHA-256 over all that shapes the work, in hex: identifies the round's content in a ledger."""
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
        config = ConfigRecord({"request": canonical_json(self._header())})
        return addressed(RecordDict({MODEL: arrays, CONFIG: config}), self.anchor)

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
            anchor=_request_anchor(content),
        )


@dataclass(frozen=True)
class TrainReply:
    """A hospital's one reply to a round: the noised update and public fields.

    Attributes:
        study, server_round, codec: as they were asked.
        hospital, num_examples: as they were enrolled.
        update: packed.
        anchor: of the charge in the hospital's budget ledger; empty where nothing is charged.
    """

    study: str
    server_round: int
    hospital: str
    num_examples: int
    codec: str
    update: Payload
    anchor: str = ""

    def _header(self) -> bytes:
        return canonical_json(
            {
                "study": self.study,
                "round": self.server_round,
                "hospital": self.hospital,
                "num_examples": self.num_examples,
                "codec": self.codec,
                "anchor": self.anchor,
            }
        )

    def to_records(self) -> RecordDict:
        """The Flower content of the reply."""
        config = ConfigRecord({"reply": self._header()})
        return RecordDict({UPDATE: ArrayRecord({LATENTS: Array(self.update)}), CONFIG: config})

    def to_bytes(self) -> bytes:
        """All of the reply as a hospital keeps it: the header, a newline, the update."""
        return self._header() + b"\n" + self.update.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainReply":
        """The inverse of `to_bytes`.

        Raises:
            PayloadRefused: no reply of this version.
        """
        header, _, update = data.partition(b"\n")  # canonical JSON has no newline in it
        return cls._from(_parsed(header, "reply", _REPLY_FIELDS), np.frombuffer(update, np.uint8))

    @classmethod
    def from_records(cls, content: RecordDict) -> "TrainReply":
        """The inverse of `to_records`.

        Raises:
            PayloadRefused: records missing or malformed.
        """
        header = _header(content, "reply", _REPLY_FIELDS)
        vectors = _vectors(content, UPDATE)
        if set(vectors) != {LATENTS}:
            raise PayloadRefused(f"A reply carries one packed update, not {sorted(vectors)}.")
        return cls._from(header, vectors[LATENTS])

    @classmethod
    def _from(cls, header: dict[str, object], update: Payload) -> "TrainReply":
        return cls(
            study=_typed(header, "study", str),
            server_round=_typed(header, "round", int),
            hospital=_typed(header, "hospital", str),
            num_examples=_typed(header, "num_examples", int),
            codec=_typed(header, "codec", str),
            update=update,
            anchor=_anchor(header["anchor"]),
        )


_REPLY_FIELDS = {"study", "round", "hospital", "num_examples", "codec", "anchor"}


def addressed(request: RecordDict, anchor: str) -> RecordDict:
    """The same request for one hospital: its arrays are shared, not copied; only the anchor is its own."""
    config = {name: value for name, value in request.config_records[CONFIG].items() if name != LEDGER_ANCHOR}
    if anchor:
        config[LEDGER_ANCHOR] = anchor.encode()
    return RecordDict({MODEL: request.array_records[MODEL], CONFIG: ConfigRecord(config)})


def _request_anchor(content: RecordDict) -> str:
    value = content.config_records[CONFIG].get(LEDGER_ANCHOR, b"")
    return _anchor(value.decode("ascii", "replace") if isinstance(value, bytes) else None)


def _anchor(value: object) -> str:
    if not isinstance(value, str) or not _ANCHOR_TOKEN.fullmatch(value):
        raise PayloadRefused("A message's anchor is not the token that a hospital makes.")
    return value


def _header(content: RecordDict, key: str, names: set[str]) -> dict[str, object]:
    try:
        data = cast(bytes, content.config_records[CONFIG][key])
    except (KeyError, TypeError, AttributeError):
        data = b""
    return _parsed(data, key, names)


def _parsed(data: bytes, key: str, names: set[str]) -> dict[str, object]:
    try:
        value = parse_canonical(data)
    except (TypeError, ValueError, AttributeError) as error:
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


def message_bytes(message: Message) -> int:
    """Bytes of a reply as both ends count them: of its content, or of a refusal's code and text.

    Other errors are Flower's own words, not the hospital's, and count nothing.
    """
    if message.has_content():
        return wire_bytes(message.content)
    if not message.has_error() or message.error.code != REFUSED:
        return 0
    return len(str(REFUSED)) + len((message.error.reason or "").encode("utf-8", "replace"))


def refusal_reply(refusal: Refusal, request: Message) -> Message:
    """A reply that carries a refusal's public name and sentence."""
    return Message(Error(REFUSED, f"{refusal.name}: {refusal}"), reply_to=request)


def refusal_text(message: Message) -> tuple[str, str]:
    """(name, sentence) of a reply's error; other errors than refusals are told by their code only."""
    reason = message.error.reason or ""
    name, separator, sentence = reason.partition(": ")
    if message.error.code == REFUSED and separator:
        return name, sentence
    if message.error.code in _RELAYED:
        return _RELAYED[message.error.code]
    return (
        "HospitalFailed",
        f"The hospital's app failed (Flower error {message.error.code}); see its own log.",
    )
