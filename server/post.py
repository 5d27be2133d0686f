"""A study's messages on their way: counted, and in a federation enclosed and opened.

In a federation an answer counts only if its site's signatures prove it. Anything else (Flower's database is
written by whoever holds SuperLink) is told as unproven: the site is asked again, as one whose reply was
lost, and whoever sent it gains nothing that dropping the true answer would not have given.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedward.common.errors import EnvelopeRefused, PayloadRefused
from fedward.common.letters import about
from fedward.common.messages import message_bytes, wire_bytes
from fedward.common.reply_codes import REFUSED, UNPROVEN
from fedward.server.letters import Letters

_log = logging.getLogger(__name__)
_MOST_NOTES = 1000  # in a run, of what was not proven


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
        self._asked: dict[str, tuple[str, int]] = {}
        self._notes = 0

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
        (message_id,) = self.grid.push_messages([letter])
        if message_id:
            self._asked[message_id] = question.metadata.message_type, about(question.content)[1]
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """As Flower's; one in memory at a time."""
        for reply in self.grid.pull_messages(message_ids):
            self.received += message_bytes(reply)
            topic = self._asked.pop(reply.metadata.reply_to_message_id, None)
            yield reply if self._letters is None else self._proven(self._letters, reply, topic)

    def _proven(self, letters: Letters, reply: Message, topic: tuple[str, int] | None) -> Message:
        if reply.has_error():
            # A site signs its refusals; only what Flower and the site's task runner say stands alone.
            return reply if reply.error.code != REFUSED else self._unproven(reply, reply.error.reason or "")
        try:
            if topic is None:
                raise EnvelopeRefused("A reply came to no question of this run.")
            opened = letters.open(reply, *topic)
        except (EnvelopeRefused, PayloadRefused) as refusal:
            return self._unproven(reply, f"{refusal.name}: {refusal}")
        return _with(opened, reply)

    def _unproven(self, reply: Message, why: str) -> Message:
        node_id = reply.metadata.src_node_id
        _log.warning("an answer is not proven", extra={"fields": {"refusal": why.partition(":")[0][:80]}})
        if self._notes < _MOST_NOTES:
            self._notes += 1
            self._on_unproven(node_id, why[:300])
        return _with(Error(UNPROVEN, why), reply)


def _with(content: RecordDict | Error, message: Message) -> Message:
    """Another content under the same metadata."""
    return Message(content, metadata=message.metadata)  # type: ignore[call-overload,no-any-return]
