"""The one gate through which every byte to the coordinator passes, and the log of what passed.

Each field that a hospital can send has its class declared in `FIELDS`, and nowhere else:

- ``public``: known to the coordinator before, or chosen by the hospital at enrolment;
- ``dp``: the output of a mechanism that was charged, named with its charge;
- ``consented``: leaves because the site's policy says so.

A message with any other field is refused whole. A failure leaves as a refusal's name and a sentence from a
class that may leave; the text of an exception never does. The log is a hash-chained ledger of its own.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, RecordDict

from fedward.client.spending import Charge
from fedward.common.errors import (
    BudgetRefused,
    EgressRefused,
    PayloadRefused,
    Refusal,
    RequestRefused,
    SettingRefused,
)
from fedward.common.files import parse_canonical
from fedward.common.ledger import Ledger
from fedward.common.messages import CONFIG, LATENTS, REFUSED, UPDATE

PUBLIC, DP, CONSENTED = "public", "dp", "consented"

# (kind of message, field) -> (class, why it may leave, in words for a data protection officer)
FIELDS: dict[tuple[str, str], tuple[str, str]] = {
    ("enrol", "profile.name"): (CONSENTED, "the name that the hospital chose at enrolment"),
    ("enrol", "profile.num_examples"): (CONSENTED, "the rounded count of images that the hospital declared"),
    ("train", "reply.study"): (PUBLIC, "the study's name, as the coordinator asked"),
    ("train", "reply.round"): (PUBLIC, "the round's number, as the coordinator asked"),
    ("train", "reply.codec"): (PUBLIC, "the format of the update, as the coordinator asked"),
    ("train", "reply.hospital"): (CONSENTED, "the name that the hospital chose at enrolment"),
    ("train", "reply.num_examples"): (CONSENTED, "the rounded count of images that the hospital declared"),
    ("train", "update.latents"): (DP, "the model's change, with noise that hides any one image"),
    ("refusal", "error.code"): (PUBLIC, "that the hospital refused"),
    ("refusal", "error.reason"): (
        PUBLIC,
        "the refusal's name and a fixed sentence about the request or the budget",
    ),
}

# Refusals whose sentences are about the request and the budget only.
SPEAKING = (BudgetRefused, EgressRefused, PayloadRefused, RequestRefused, SettingRefused)
_SILENT = "The hospital cannot answer; see its own log."


@dataclass(frozen=True)
class Field:
    """One field of a message: its bytes are counted in the record that carries it."""

    name: str
    digest: str


@dataclass(frozen=True)
class Record:
    """A part of a message as it travels: a packed array or a JSON header, with the fields in it."""

    name: str
    size: int
    fields: tuple[Field, ...]


class Gate:
    """Classifies, logs and lets out.

    Args:
        path: of the egress ledger; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        """Open the log."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger.open(path) if path.exists() else Ledger.create(path, "egress")

    def release(self, kind: str, content: RecordDict, request: Message, charge: Charge | None) -> Message:
        """The reply to `request` with `content`, logged before it leaves.

        Args:
            kind: enrol or train.
            content: what is to leave.
            request: what is answered.
            charge: what a ``dp`` field cost.

        Raises:
            EgressRefused: a field has no class, or a ``dp`` field no charge; nothing leaves.
        """
        records = list(records_of(content))
        self._log(kind, records, charge)
        return Message(content, reply_to=request)

    def refuse(self, refusal: Refusal, request: Message, private: tuple[str, ...] = ()) -> Message:
        """The reply that carries a refusal by name; its sentence only if that is public.

        Args:
            private: texts that must not leave, for example the path of the state folder.
        """
        speaks = isinstance(refusal, SPEAKING) and not any(text and text in str(refusal) for text in private)
        reason = f"{refusal.name}: {refusal if speaks else _SILENT}"
        fields = (
            Field("error.code", _sha256(str(REFUSED).encode())),
            Field("error.reason", _sha256(reason.encode())),
        )
        self._log("refusal", [Record("error", len(reason.encode()), fields)], None)
        return Message(Error(REFUSED, reason), reply_to=request)

    def _log(self, kind: str, records: list[Record], charge: Charge | None) -> None:
        fields = [_entry(kind, field, charge) for record in records for field in record.fields]
        spent = (
            None
            if charge is None
            else {"study": charge.study, "round": charge.server_round, "seq": charge.seq}
        )
        body: dict[str, Any] = {
            "message": kind,
            "bytes": sum(record.size for record in records),
            "records": [{"name": record.name, "bytes": record.size} for record in records],
            "fields": fields,
            "charge": spent,
        }
        self.ledger.append("left", body)


def records_of(content: RecordDict) -> Iterator[Record]:
    """The parts of a message's content with every field in them.

    Raises:
        EgressRefused: a part that is neither an array nor a canonical JSON header.
    """
    for key, arrays in content.array_records.items():
        for name, array in arrays.items():
            yield Record(f"{key}.{name}", len(array.data), (Field(f"{key}.{name}", _sha256(array.data)),))
    for key, config in content.config_records.items():
        for name, value in config.items():
            if key != CONFIG or not isinstance(value, bytes):
                raise EgressRefused(f"The field {key}.{name} has no class; nothing was sent.")
            yield Record(name, len(value), tuple(_header_fields(name, value)))
    if content.metric_records:
        raise EgressRefused("A message with metrics has no class; nothing was sent.")


def _header_fields(name: str, value: bytes) -> Iterator[Field]:
    try:
        header = parse_canonical(value)
    except ValueError as error:
        raise EgressRefused(f"The header {name} is not canonical JSON; nothing was sent.") from error
    if not isinstance(header, dict):
        raise EgressRefused(f"The header {name} has no named fields; nothing was sent.")
    for key, item in header.items():
        yield Field(f"{name}.{key}", _sha256(repr(item).encode()))


def _entry(kind: str, field: Field, charge: Charge | None) -> dict[str, str]:
    known = FIELDS.get((kind, field.name))
    if known is None:
        raise EgressRefused(f"The field {field.name} of a message {kind!r} has no class; nothing was sent.")
    if known[0] == DP and charge is None:
        raise EgressRefused(f"The field {field.name} carries private data and no charge; nothing was sent.")
    return {"name": field.name, "class": known[0], "sha256": field.digest}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


__all__ = ["CONSENTED", "DP", "FIELDS", "LATENTS", "PUBLIC", "SPEAKING", "UPDATE", "Gate", "records_of"]
