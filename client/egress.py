"""The one gate through which every byte to the coordinator passes, and the log of what passed.

Each field that a hospital can send has its class declared in `fedward.client.egress_fields`. A message with
any other field is held back whole. A failure leaves as a refusal's name and, of the classes in `SPEAKING`,
its sentence; the text of an exception never does. The log is a hash-chained ledger of its own, written and
synced before the message leaves: where it cannot be written, one constant sentence leaves.

    left   {message, asked, about, bytes, fields: [{name, class, bytes, sha256, why?}], charges}
    held   {message, asked, why}                       a message that was not sent, and the reason

What is asked again and again is counted, not written again: see `fedward.client.egress_log`.
"""

import functools
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict

from fedward.client.egress_fields import (
    CONSENTED,
    DP,
    FIELDS,
    JOIN,
    MEASURE,
    PAID_BY,
    REFUSAL,
    SEEDED,
    SEEDED_MEASUREMENT,
    WAIVED,
)
from fedward.client.egress_log import HELD, LOG, EgressLog
from fedward.client.letters import Letter
from fedward.client.spending import Charge, mechanism_json
from fedward.common.errors import (
    BudgetRefused,
    EgressRefused,
    EnvelopeRefused,
    PayloadRefused,
    Refusal,
    RequestRefused,
    SettingRefused,
)
from fedward.common.files import canonical_json, parse_canonical
from fedward.common.letters import ENVELOPE
from fedward.common.logs import told
from fedward.common.messages import CONFIG, refusal_reply, wire_bytes

# Refusals whose sentences are about the request, its envelope, the budget and the site's policy only.
SPEAKING = (BudgetRefused, EnvelopeRefused, PayloadRefused, RequestRefused, SettingRefused)
SILENT = "The hospital cannot answer; see its own log."
UNLOGGED = "The hospital's record of what leaves it cannot be written, so nothing leaves; see its own log."
_LONGEST_SENTENCE = 1000  # characters; a request's own words may be in it
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Field:
    """One field of a message. Sizes add up to the message's: a header's punctuation is in its fields'.

    Attributes:
        name: ``record.field``.
        size: bytes.
        sha256: of its bytes, in hex.
    """

    name: str
    size: int
    sha256: str


class Gate:
    """Classifies, logs and lets out."""

    def __init__(self, path: Path) -> None:
        """Open the log at `path`, or start it in a state folder that exists.

        Raises:
            LedgerRefused: busy, or it does not verify.
            OutputRefused: it cannot be written.
        """
        self._log = EgressLog.open(path)
        self.ledger = self._log.ledger

    def release(
        self,
        kind: str,
        content: RecordDict,
        request: Message,
        charges: tuple[Charge, ...],
        remark: str = "",
        letter: Letter | None = None,
    ) -> Message:
        """The reply to `request` with `content`, once it is logged.

        Args:
            kind: enrol, train or measure.
            content: what is to leave.
            request: what is answered.
            charges: what its ``dp`` fields cost, one for each.
            remark: what the log says of ``dp`` fields: `SEEDED`, or `WAIVED`, with which alone they may leave
                without a charge, and never as ``dp``.
            letter: the question, where it came in an envelope: then the reply leaves in one.

        Raises:
            EgressRefused: a field has no class, a ``dp`` field no charge of its own kind and round, or a
                charge no field; nothing leaves.
            LedgerRefused, OutputRefused: it could not be logged; nothing leaves.
        """
        try:
            header, fields = _opened_up(content)
            _refuse_foreign_charges(kind, header, fields, charges)
            paid = {charge.kind for charge in charges}
            classed = [_classed(kind, field, paid, remark) for field in fields]
        except EgressRefused as refusal:
            self._log.write(HELD, {"message": kind, "asked": _asked(request), "why": str(refusal)[:500]})
            raise
        leaving = content
        if letter is not None:
            leaving = letter.answer(content)
            classed.append(_envelope(kind, letter, leaving, classed))
        self._left(kind, request, classed, _about(header), charges)
        return Message(leaving, reply_to=request)

    def hand_out(self, document: dict[str, Any]) -> None:
        """Log a request to join or renew, whose fields are `document`, before a person carries it out.

        Raises:
            EgressRefused: a field has no class: it must not be written.
            LedgerRefused, OutputRefused: it could not be logged, and must not be written either.
        """
        fields = [_classed(JOIN, field, set(), "") for field in _header_fields("request", document)]
        self._log.write("left", _body(JOIN, "by hand", fields, {}, ()))

    def refuse(
        self,
        refusal: Refusal,
        request: Message,
        private: tuple[str, ...] = (),
        letter: Letter | None = None,
    ) -> Message:
        """The reply that carries a refusal by name, its sentence only if that may leave; it never raises.

        Args:
            private: texts that must not leave, for example the path of the state folder.
            letter: the question, where it came in an envelope: then the refusal leaves in one.
        """
        shown = _shown(refusal, private)
        reply = refusal_reply(shown, request)
        code, reason = str(reply.error.code).encode(), str(reply.error.reason).encode()
        fields = (
            Field("error.code", len(code), _sha256(code)),
            Field("error.reason", len(reason), _sha256(reason)),
        )
        try:
            classed = [_classed(REFUSAL, field, set(), "") for field in fields]
            if letter is not None:
                leaving = letter.refusal(reply.error)
                classed.append(_envelope(REFUSAL, letter, leaving, classed))
                reply = Message(leaving, reply_to=request)
            self._left(REFUSAL, request, classed, {"refusal": shown.name}, ())
        except Exception:
            _logger.exception("what leaves cannot be logged")
            return unlogged(request)
        return reply

    def _left(
        self,
        kind: str,
        request: Message,
        fields: list[dict[str, Any]],
        about: dict[str, Any],
        charges: tuple[Charge, ...],
    ) -> None:
        self._log.write("left", _body(kind, _asked(request), fields, about, charges))


@functools.lru_cache(maxsize=64)
def open_gate(folder: Path) -> Gate:
    """The gate of a hospital's state folder, opened and verified once a process."""
    return Gate(folder / LOG)


def unlogged(request: Message) -> Message:
    """The one message that leaves without a line in the log, since there is no log: a constant."""
    return refusal_reply(EgressRefused(UNLOGGED), request)


def _opened_up(content: RecordDict) -> tuple[dict[str, Any], list[Field]]:
    """All named values of a message's headers, and every field of the message.

    Raises:
        EgressRefused: a part that is neither an array nor a header in canonical JSON.
    """
    fields = [
        Field(f"{key}.{name}", len(array.data), _sha256(array.data))
        for key, arrays in content.array_records.items()
        for name, array in arrays.items()
    ]
    headers: dict[str, Any] = {}
    for key, config in content.config_records.items():
        for name, value in config.items():
            header = _header(f"{key}.{name}", value if key == CONFIG else None)
            fields += _header_fields(name, header)
            headers |= header
    if len(content) != len(content.array_records) + len(content.config_records):
        raise EgressRefused("A record that is neither arrays nor configuration has no class.")
    return headers, fields


def _header(name: str, value: object) -> dict[str, Any]:
    try:
        header = parse_canonical(value) if isinstance(value, bytes) else None
    except ValueError:
        header = None
    if not isinstance(header, dict) or not header:
        raise EgressRefused(f"The field {name} is no header of named fields, so it has no class.")
    return header


def _header_fields(name: str, header: dict[str, Any]) -> Iterator[Field]:
    for number, (key, value) in enumerate(header.items()):
        # {"a":1,"b":2} is {"a":1 and ,"b":2 and the last brace, which the first field takes.
        size = len(canonical_json({key: value})) - (number > 0)
        yield Field(f"{name}.{key}", size, _sha256(canonical_json(value)))


def _classed(kind: str, field: Field, paid: set[str], remark: str) -> dict[str, Any]:
    known = FIELDS.get((kind, field.name))
    if known is None:
        raise EgressRefused(f"The field {field.name} of a message {kind!r} has no class.")
    entry = {"name": field.name, "class": known[0], "bytes": field.size, "sha256": field.sha256}
    if known[0] != DP:
        return entry
    if (remark == WAIVED) == (PAID_BY[kind, field.name] in paid):
        raise EgressRefused(f"The field {field.name} carries private data and no charge, or one too many.")
    if remark == SEEDED and kind == MEASURE:
        remark = SEEDED_MEASUREMENT
    if remark:
        entry |= {"class": CONSENTED if remark == WAIVED else DP, "why": remark}
    return entry


def _envelope(kind: str, letter: Letter, leaving: RecordDict, fields: list[dict[str, Any]]) -> dict[str, Any]:
    """What an envelope adds to a message's fields. Its bytes differ each time, so that what the log tells of
    them is whose signatures they are: an answer that leaves again is counted as the same.
    """
    size = wire_bytes(leaving) - sum(field["bytes"] for field in fields)
    return _classed(kind, Field(ENVELOPE, size, letter.signed_by), set(), "")


def _refuse_foreign_charges(
    kind: str, header: dict[str, Any], fields: list[Field], charges: tuple[Charge, ...]
) -> None:
    """A charge pays for one field of the reply to its own round, and for no other message."""
    payable = {PAID_BY.get((kind, field.name)) for field in fields}
    for charge in charges:
        if (charge.study, charge.server_round) != (header.get("study"), header.get("round")):
            raise EgressRefused("The charge is another round's.")
        if charge.kind not in payable:
            raise EgressRefused(f"The charge of kind {charge.kind!r} pays for no field of this message.")


def _shown(refusal: Refusal, private: tuple[str, ...]) -> Refusal:
    sentence = str(refusal).encode("utf-8", "replace").decode()
    if isinstance(refusal, SPEAKING) and not any(text and text in sentence for text in private):
        return type(refusal)(sentence[:_LONGEST_SENTENCE])
    # Its sentence may name a file, or what stands in one; its name alone is public.
    _logger.error("a refusal whose sentence stays here", extra={"fields": told(refusal)})
    return type(refusal)(SILENT)


def _about(header: dict[str, Any]) -> dict[str, Any]:
    """What a person finds a message by; a name that the coordinator chose may be long."""
    return {key: header[key] for key in ("study", "round") if key in header}


def _asked(request: Message) -> str:
    return str(request.metadata.message_type)


def _body(
    kind: str, asked: str, fields: list[dict[str, Any]], about: dict[str, Any], charges: tuple[Charge, ...]
) -> dict[str, Any]:
    return {
        "message": kind,
        "asked": asked,
        "about": about,
        "bytes": sum(field["bytes"] for field in fields),
        "fields": fields,
        "charges": [_charge_json(charge) for charge in charges],
    }


def _charge_json(charge: Charge) -> dict[str, Any]:
    return {
        "study": charge.study,
        "round": charge.server_round,
        "kind": charge.kind,
        "mechanism": mechanism_json(charge.mechanism),
        "entry": charge.head.seq,
        "hash": charge.head.hash,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
