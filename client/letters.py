"""The hospital's side of envelopes: what may be asked of a site of a federation, and how its answers leave.

A hospital that is in a federation takes nothing but envelopes of its coordinator's, to itself, in time, in
order, each once; one that is in none (a simulation, a trial on loopback) takes plain messages. An answer is
enclosed each time that it leaves, under a new number and for the key that the question names: what is stored
is the answer itself, so that it can still be read after the coordinator changed keys.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flwr.app import Error, Message, RecordDict

from fedward.client.membership import FOLDER, Membership, current_folder
from fedward.client.state_folder import NODE_ID
from fedward.common.envelope import Expected, enclose, open_envelope
from fedward.common.envelope_header import Address, Header
from fedward.common.errors import EnvelopeMisdirected, EnvelopeRefused
from fedward.common.files import read_bounded
from fedward.common.instants import utc_now
from fedward.common.letters import (
    ANSWERS,
    QUESTIONS,
    REFUSAL,
    SEALED,
    as_content,
    envelope_in,
    is_enclosed,
    pack_refusal,
    unpack_question,
)
from fedward.common.numbers import NextNumber, Numbers
from fedward.common.records import pack_records
from fedward.common.sealing import PublicSealingKey
from fedward.common.sealing_keys import read_announcement
from fedward.common.signing import Signer

_NUMBERS, _NEXT = "numbers", "next-number"  # in the folder of the federation


@dataclass(frozen=True)
class Letter:
    """A question that came in an envelope and is proven.

    Attributes:
        content: the question's records.
        header: of its envelope.
    """

    content: RecordDict
    header: Header
    _signer: Signer
    _next: NextNumber
    _seal: PublicSealingKey

    @property
    def signed_by(self) -> str:
        """Key id of this site's signatures."""
        return self._signer.public().keyid

    def require(self, study: str, server_round: int) -> None:
        """Compare what a question says with what its envelope says.

        Raises:
            EnvelopeMisdirected: they differ.
        """
        address = self.header.address
        if (address.study, address.server_round) != (study, server_round):
            raise EnvelopeMisdirected(
                f"A question about round {server_round} of {study!r} came in an envelope about round "
                f"{address.server_round} of {address.study!r}; its sender must send it anew."
            )

    def answer(self, content: RecordDict) -> RecordDict:
        """The content of the message in which `content` leaves.

        Raises:
            LedgerRefused, OutputRefused: its number cannot be kept.
        """
        return self._enclosed(ANSWERS[self.header.address.kind], pack_records(content))

    def refusal(self, error: Error) -> RecordDict:
        """The same of a refusal.

        Raises:
            LedgerRefused, OutputRefused: its number cannot be kept.
        """
        return self._enclosed(REFUSAL, pack_refusal(error))

    def _enclosed(self, kind: str, payload: bytes) -> RecordDict:
        asked = self.header.address
        number = self._next.take(utc_now().timestamp())
        address = Address(asked.study, asked.server_round, kind, self.header.sender, number, asked.expires)
        seal = self._seal if SEALED[kind] else None
        return as_content(enclose(payload, address, self._signer, seal))


def open_letter(folder: Path, message: Message) -> Letter | None:
    """The proven question in `message`; None where the hospital of this folder is in no federation.

    Raises:
        EnvelopeRefused: it is not the coordinator's, not for this site, too old, or came before.
        EnrolmentRefused: the membership is damaged, or all keys of the coordinator were rotated out.
        TrustRefused: the key for the answer's seal is not the coordinator's.
        LedgerRefused, OutputRefused: its number cannot be kept, so it must not be answered.
    """
    if current_folder(folder) is None:
        if is_enclosed(message.content):
            raise EnvelopeRefused(
                "A message in an envelope came to a hospital that is in no federation: run `fedward hospital "
                "join`."
            )
        return None
    member, now = Membership.load(folder), utc_now()
    expected = Expected(
        receiver=_own_name(member, folder, message),
        kinds={_kind(message): False},
        sender=member.federation.coordinator,
    )
    opened = open_envelope(
        envelope_in(message.content),
        expected,
        trust=member.coordinator_keys(now),
        now=now.timestamp(),
        numbers=Numbers(folder / FOLDER / _NUMBERS),
        retired=member.federation.retired(now),
    )
    content, announced = unpack_question(opened.payload)
    seal = _sealing_key(announced, member, now)
    return Letter(content, opened.header, member.signer(), NextNumber(folder / FOLDER / _NEXT), seal)


def _sealing_key(announced: bytes, member: Membership, now: datetime) -> PublicSealingKey:
    return read_announcement(
        announced, member.federation.coordinator, member.coordinator_keys(now), now.timestamp()
    )


def _kind(message: Message) -> str:
    asked = message.metadata.message_type
    if asked not in QUESTIONS:
        raise EnvelopeRefused(f"A message of type {asked!r} is no question that a site answers.")
    return QUESTIONS[asked]


def _own_name(member: Membership, folder: Path, message: Message) -> str:
    """Who asks for this site's name does not know it yet, but to which of its nodes it writes."""
    if _kind(message) != "enrol":
        return member.name
    return f"node {read_bounded(folder / NODE_ID, 32, refusal=EnvelopeRefused).decode('ascii', 'replace')}"
