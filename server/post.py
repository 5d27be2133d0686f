"""A study's messages on their way: counted, and in a federation enclosed and opened.

In a federation an answer counts only if its site's signatures prove it. Anything else (Flower's database is
written by whoever holds SuperLink) is told as unproven: the site is asked again, as one whose reply was
lost, and whoever sent it gains nothing that dropping the true answer would not have given.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedward.common.errors import EnvelopeRefused, PayloadRefused
from fedward.common.messages import message_bytes, refusal_text, wire_bytes
from fedward.common.reply_codes import NO_DAEMON, UNPROVEN
from fedward.server.letters import Letters, Question

# What is said of a message or a node that is gone; a hospital's own refusals have another code.
PASSING = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
    NO_DAEMON,
    UNPROVEN,
)
_log = logging.getLogger(__name__)
_MOST_NOTES = 100  # in a run, of what one node did not prove
_LONGEST_REASON = 300  # characters; whoever sent it chose the words


class Post:
    """Flower's Grid as the study's loop uses it.

    Args:
        grid: Flower's.
        letters: of a study in a federation; None in a simulation, whose messages are plain.
        on_unproven: told the node, and why its answer was not taken.

    Attributes:
        sent, received: bytes of all messages so far, as they travelled.
    """

    def __init__(
        self,
        grid: Grid,
        letters: Letters | None = None,
        on_unproven: Callable[[int, str], None] = lambda node, why: None,
    ) -> None:
        """Nothing was sent yet."""
        self.grid = grid
        self.sent = self.received = 0
        self._letters = letters
        self._on_unproven = on_unproven
        self._asked: dict[str, Question] = {}
        self._notes = Counter[int]()

    def get_nodes(self) -> Iterable[Any]:
        """As Flower's: those that are connected."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As Flower's; ids in the order of the messages."""
        if self._letters is None:
            questions = list(messages)
            self.sent += sum(wire_bytes(one.content) for one in questions)
            return self.grid.push_messages(questions)
        return [self._posted(self._letters, question) for question in messages]

    def _posted(self, letters: Letters, question: Message) -> str:
        # What the question holds is all sites' together, its envelope one site's: it is not kept.
        letter = _with(letters.enclosed(question), question)
        self.sent += wire_bytes(letter.content)
        # Of what is too large for SuperLink there is no id at all.
        message_id = next(iter(self.grid.push_messages([letter])), None) or ""
        if message_id:
            self._asked[message_id] = Question.of(question)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """As Flower's; one in memory at a time."""
        pulled = list(message_ids)
        for reply in self.grid.pull_messages(pulled):
            self.received += message_bytes(reply)
            answered = reply.metadata.reply_to_message_id
            # SuperLink says what a reply answers: it may be no question of this round.
            asked = self._asked.pop(answered, None) if answered in pulled else None
            yield reply if self._letters is None else self._proven(self._letters, reply, asked)

    def _proven(self, letters: Letters, reply: Message, asked: Question | None) -> Message:
        node_id = reply.metadata.src_node_id if asked is None else asked.node_id
        if reply.has_error():
            # A site signs its refusals; only that a message or a node is gone is anybody's to say.
            is_passing = reply.error.code in PASSING
            return reply if is_passing else self._unproven(reply, node_id, ": ".join(refusal_text(reply)))
        try:
            if asked is None:
                raise EnvelopeRefused("A reply came to no question that was waited for.")
            opened = letters.open(reply, asked)
        except (EnvelopeRefused, PayloadRefused) as refusal:
            return self._unproven(reply, node_id, f"{refusal.name}: {refusal}")
        return _with(opened, reply)

    def _unproven(self, reply: Message, node_id: int, why: str) -> Message:
        why = why[:_LONGEST_REASON]
        _log.warning("an answer is not proven", extra={"fields": {"refusal": why.partition(":")[0][:80]}})
        if self._notes[node_id] < _MOST_NOTES:
            self._notes[node_id] += 1
            self._on_unproven(node_id, why)
        return _with(Error(UNPROVEN, why), reply)


def _with(content: RecordDict | Error, message: Message) -> Message:
    """Another content under the same metadata."""
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload,no-any-return]
