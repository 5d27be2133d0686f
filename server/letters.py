"""The coordinator's side of envelopes: a study's questions, and what its sites prove to have answered."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from flwr.app import Error, Message, RecordDict

from fedward.common.envelope import LONGEST_LIFE_SECONDS, Expected, Opened, enclose, open_envelope
from fedward.common.envelope_header import Address
from fedward.common.errors import EnvelopeMisdirected, EnvelopeRefused
from fedward.common.files import parse_canonical
from fedward.common.instants import utc_now
from fedward.common.letters import (
    ANSWERS,
    PROFILE,
    QUESTIONS,
    REFUSAL,
    SEALED,
    about,
    as_content,
    envelope_in,
    pack_question,
    unpack_refusal,
)
from fedward.common.message_parts import CONFIG
from fedward.common.numbers import ANY_ORDER, NextNumber, Numbers
from fedward.common.records import unpack_records
from fedward.common.sealing import SealingKey
from fedward.common.sealing_keys import SEALING_KEY_FILE, announce, create_sealing_key, load_sealing_key
from fedward.common.trust import TrustedKey
from fedward.server.coordinator import Coordinator
from fedward.server.sites import SITES, Site, Sites

_NUMBERS, _NEXT = "numbers", "next-number"


class Question(NamedTuple):
    """What was asked: which node, by Flower's type of the message, and of which round."""

    node_id: int
    kind: str
    server_round: int

    @classmethod
    def of(cls, message: Message) -> "Question":
        """That of a message before it is enclosed."""
        where = message.metadata
        return cls(where.dst_node_id, where.message_type, about(message.content)[1])


class Letters:
    """Encloses the questions of one study and opens what answers them.

    Args:
        coordinator: its state folder, with its keys and the list of sites.
        study: the study's name.
        folder: the study's, where the key is kept to which answers are sealed.
    """

    def __init__(self, coordinator: Path, study: str, folder: Path) -> None:
        """Prepare; the sealing key is made where there is none yet.

        Raises:
            TrustRefused: the sealing key is damaged.
            OutputRefused: a folder cannot be written.
        """
        self._coordinator, self._study = coordinator, study
        self._sealing = _sealing_key(folder)
        self._next = NextNumber(coordinator / _NEXT)
        self._numbers = Numbers(coordinator / _NUMBERS)
        self._names: dict[int, str] = {}
        self._sites: tuple[object, list[Site]] = (None, [])

    def enclosed(self, question: Message) -> RecordDict:
        """The content in which `question` travels: an envelope, good for as long as Flower keeps it.

        Raises:
            EnrolmentRefused, TrustRefused: the coordinator's keys are missing or damaged.
            LedgerRefused, OutputRefused: its number cannot be kept.
        """
        now, asked = utc_now(), Question.of(question)
        signer = Coordinator(self._coordinator).signer(now)
        kind = QUESTIONS[asked.kind]
        address = Address(
            self._study,
            asked.server_round,
            kind,
            self._names[asked.node_id] if kind != "enrol" else _unnamed(asked.node_id),
            self._next.take(now.timestamp()),
            int(now.timestamp() + question.metadata.ttl),
        )
        announced = announce(self._sealing.public(), signer, int(now.timestamp()) + LONGEST_LIFE_SECONDS)
        return as_content(enclose(pack_question(question.content, announced), address, signer))

    def open(self, reply: Message, asked: Question) -> RecordDict | Error:
        """What a proven reply holds.

        Raises:
            EnvelopeRefused: it is not this site's answer to this question.
            PayloadRefused: it is, and cannot be read.
        """
        if reply.metadata.src_node_id != asked.node_id:
            raise EnvelopeMisdirected("A reply came from another node than the one that was asked.")
        answer = ANSWERS[QUESTIONS[asked.kind]]
        opened = self._opened(envelope_in(reply.content), asked, answer)
        if opened.header.address.kind == REFUSAL:
            return unpack_refusal(opened.payload)
        content = unpack_records(opened.payload)
        if answer == PROFILE:
            self._learn(asked.node_id, content, opened.header.sender)
        return content

    def _opened(self, envelope: bytes, asked: Question, answer: str) -> Opened:
        coordinator, now = Coordinator(self._coordinator), utc_now()
        kinds: Mapping[str, bool] = {kind: SEALED[kind] for kind in (answer, REFUSAL)}
        sender = None if answer == PROFILE else self._names[asked.node_id]
        expected = Expected(coordinator.name, kinds, self._study, asked.server_round, sender)
        return open_envelope(
            envelope,
            expected,
            trust=self._trust(now),
            now=now.timestamp(),
            numbers=self._numbers,
            accepted=ANY_ORDER,
            sealing_keys=[self._sealing],
        )

    def _learn(self, node_id: int, content: RecordDict, sender: str) -> None:
        """A site speaks for the name that its key has here, and for no other."""
        try:
            name = parse_canonical(content.config_records[CONFIG]["profile"])["name"]  # type: ignore[arg-type]
        except (KeyError, ValueError, TypeError) as error:
            raise EnvelopeRefused("A site's profile cannot be read; it is of another version.") from error
        if name != sender:
            raise EnvelopeMisdirected(f"The site {sender!r} answers under another name, {name!r}.")
        self._names[node_id] = sender

    def _trust(self, now: datetime) -> list[TrustedKey]:
        """The keys of all sites that are not revoked; the list is read anew whenever it changed.

        Which of them still count goes by the clock, so that is asked of each message.
        """
        path = self._coordinator / SITES
        status = path.stat() if path.exists() else None
        version = status and (status.st_ino, status.st_mtime_ns)
        if status is None or self._sites[0] != version:
            self._sites = (version, Sites(self._coordinator).active())
        return [key for site in self._sites[1] for key in site.keys(now)]


def _unnamed(node_id: int) -> str:
    return f"node {node_id}"


def _sealing_key(folder: Path) -> SealingKey:
    if (folder / SEALING_KEY_FILE).exists():
        return load_sealing_key(folder)
    return create_sealing_key(folder)


def forget_sealing_key(folder: Path) -> None:
    """Once a study has ended nobody shall open its answers any more, from whatever database or recording.

    Raises:
        OutputRefused: the file cannot be removed.
    """
    (folder / SEALING_KEY_FILE).unlink(missing_ok=True)
