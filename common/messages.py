"""Flower messages of a study: record keys, and requests and replies to and from `RecordDict`.

A round is one TRAIN message to each hospital and one reply. Every vector travels as one packed uint8 array
(`fedward.common.codec`). A failure travels as a named refusal (Flower `Error`, code `REFUSED`), whose text
holds public fields only. A reply carries an anchor of the hospital's budget ledger, which only the hospital
can make or read (`fedward.client.anchors`); the next request brings the last one back.
"""

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedward.common.codec import Payload
from fedward.common.config import LocalSettings
from fedward.common.errors import PayloadRefused, Refusal
from fedward.common.files import canonical_json
from fedward.common.message_parts import (
    ANCHOR,
    CONFIG,
    FISHER,
    LATENTS,
    LEDGER_ANCHOR,
    MODEL,
    REPLICA,
    TEACHER,
    Replica,
    addressed,
    bounded,
    checked_anchor,
    checked_digest,
    packed_digest,
    parsed_header,
    read_codecs,
    read_header,
    read_replica,
    read_vectors,
    request_anchor,
    typed,
)
from fedward.common.reply_codes import NO_DAEMON, NOT_APPROVED, REFUSED, UNPROVEN
from fedward.common.setting_checks import check_text

__all__ = [
    "ANCHOR",
    "CONFIG",
    "FISHER",
    "LATENTS",
    "LEDGER_ANCHOR",
    "MODEL",
    "REFUSED",
    "TEACHER",
    "UPDATE",
    "Replica",
    "TrainReply",
    "TrainRequest",
    "addressed",
    "message_bytes",
    "packed_digest",
    "refusal_reply",
    "refusal_text",
    "wire_bytes",
]

UPDATE = "update"
# What a hospital's task runner says by itself; the words are the coordinator's own.
_RELAYED = {
    NOT_APPROVED: ("BundleNotApproved", "The hospital has not approved the bundle that the run came with."),
    NO_DAEMON: ("DaemonSilent", "The hospital's daemon did not answer in time."),
}


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
        replica: in a study whose model travels as differences, which model this one leads to, and from which.
    """

    study: str
    server_round: int
    settings: LocalSettings
    learning_rate: float
    codec: tuple[str, str]
    vectors: dict[str, Payload]
    anchor: str = ""
    replica: Replica | None = None

    @property
    def content_digest(self) -> str:
        """SHA-256 over all that shapes the work, in hex: identifies the round's content in a ledger.

        A model that comes in full is the same content as one that comes as a difference: vectors stand for
        themselves by the digests that the request names, which the hospital compares with what it gets.
        """
        if self.replica is None:
            packed = {name: packed_digest(vector) for name, vector in self.vectors.items()}
        else:
            packed = {**self.replica.fixed, LATENTS: self.replica.digest}
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
        named = {} if self.replica is None else {REPLICA: dataclasses.asdict(self.replica)}
        config = ConfigRecord({"request": canonical_json({**self._header(), **named})})
        return addressed(RecordDict({MODEL: arrays, CONFIG: config}), self.anchor)

    @classmethod
    def from_records(cls, content: RecordDict) -> "TrainRequest":
        """The inverse of `to_records`.

        Raises:
            PayloadRefused: records missing or malformed.
            SettingRefused: settings, study name, round or learning rate out of range.
            UnknownName: a codec that does not exist.
        """
        header = read_header(content, "request", _REQUEST_FIELDS, REPLICA)
        settings = LocalSettings.from_dict(header["settings"])
        check_text("A message's study", header["study"])
        codecs = read_codecs(header["codec"])
        return cls(
            study=typed(header, "study", str),
            server_round=bounded(header, "round", int, 1, settings.rounds),
            settings=settings,
            learning_rate=float(bounded(header, "learning_rate", float, 1e-12, 1e4)),
            codec=codecs,
            vectors=read_vectors(content, MODEL),
            anchor=request_anchor(content),
            replica=read_replica(header, codecs[0]),
        )


@dataclass(frozen=True)
class TrainReply:
    """A hospital's one reply to a round: the noised update and public fields.

    Attributes:
        study, server_round, codec: as they were asked.
        hospital, num_examples: as they were enrolled.
        update: packed.
        anchor: of the charge in the hospital's budget ledger; empty where nothing is charged.
        replica: digest of the model that the hospital trained from and holds, where models travel as
            differences; else empty.
    """

    study: str
    server_round: int
    hospital: str
    num_examples: int
    codec: str
    update: Payload
    anchor: str = ""
    replica: str = ""

    def _header(self) -> bytes:
        return canonical_json(
            {
                "study": self.study,
                "round": self.server_round,
                "hospital": self.hospital,
                "num_examples": self.num_examples,
                "codec": self.codec,
                "anchor": self.anchor,
                **({REPLICA: self.replica} if self.replica else {}),
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
        return cls._from(
            parsed_header(header, "reply", _REPLY_FIELDS, REPLICA), np.frombuffer(update, np.uint8)
        )

    @classmethod
    def from_records(cls, content: RecordDict) -> "TrainReply":
        """The inverse of `to_records`.

        Raises:
            PayloadRefused: records missing or malformed.
        """
        header = read_header(content, "reply", _REPLY_FIELDS, REPLICA)
        vectors = read_vectors(content, UPDATE)
        if set(vectors) != {LATENTS}:
            raise PayloadRefused(f"A reply carries one packed update, not {sorted(vectors)}.")
        return cls._from(header, vectors[LATENTS])

    @classmethod
    def _from(cls, header: dict[str, object], update: Payload) -> "TrainReply":
        return cls(
            study=typed(header, "study", str),
            server_round=typed(header, "round", int),
            hospital=typed(header, "hospital", str),
            num_examples=typed(header, "num_examples", int),
            codec=typed(header, "codec", str),
            update=update,
            anchor=checked_anchor(header["anchor"]),
            replica=checked_digest(header[REPLICA]) if REPLICA in header else "",
        )


_REQUEST_FIELDS = {"study", "round", "settings", "learning_rate", "codec"}
_REPLY_FIELDS = {"study", "round", "hospital", "num_examples", "codec", "anchor"}


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
    if message.error.code == UNPROVEN:
        return "Unproven", f"What came under the hospital's name does not prove itself ({reason})."
    if message.error.code in _RELAYED:
        return _RELAYED[message.error.code]
    return (
        "HospitalFailed",
        f"The hospital's app failed (Flower error {message.error.code}); see its own log.",
    )
