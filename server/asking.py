"""One round's questions: asked, answered one at a time, and asked anew of a hospital that comes back.

A round closes when every hospital that was asked has answered, or at its deadline. While the quorum is not
met, it also waits for hospitals that are away. An error of Flower's own (the node went offline, its reply
was lost), of a daemon that is away, and a reply that does not prove itself are no answer: the hospital is
asked again when it is back, and sends the reply that it stored; one that goes on failing, after longer and
longer pauses. One that says that it cannot use the question as it was put is asked anew at once.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedward.server.pauses import Pauses
from fedward.server.post import PASSING, Post
from fedward.server.roster import Roster

_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_BATCH = 16  # messages in memory at a time


@dataclass
class Asking:
    """The questions of one round.

    Attributes:
        grid, roster: where they go.
        question: makes and records the message to one node.
        needs_more: whether the round has too few usable replies so far.
        seconds: until the deadline.
        wants_another: told a node and its reply: whether `question` now makes it a question that it can use.
    """

    grid: Grid | Post
    roster: Roster
    question: Callable[[int], Message]
    needs_more: Callable[[], bool]
    seconds: float
    wants_another: Callable[[int, Message], bool] = lambda node_id, reply: False
    _deadline: float = 0.0
    _waiting: dict[str, int] = field(default_factory=dict)
    _answered: set[str] = field(default_factory=set)
    _failed: dict[int, Message] = field(default_factory=dict)
    _pauses: Pauses = field(default_factory=Pauses)

    def replies(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Push messages and yield replies as they come, one in memory at a time, until the round closes."""
        looked = time.monotonic()
        self._deadline = looked + self.seconds
        for batch in _batches(messages):
            self._push(batch)
        while self._is_open():
            before = set(self._waiting)
            for message_id in list(self._waiting):
                yield from self._pulled(message_id)
            if time.monotonic() > self._deadline:
                break
            if set(self._waiting) == before:
                time.sleep(_POLL_SECONDS)
                if time.monotonic() - looked > _LOOK_SECONDS:
                    looked = time.monotonic()
                    self._ask_who_came()
        yield from (reply for node_id, reply in self._failed.items() if not self._has_answered(node_id))

    def _is_open(self) -> bool:
        return bool(self._waiting) or (self._is_anybody_missing() and self.needs_more())

    def _is_anybody_missing(self) -> bool:
        return not self.roster.names <= self._answered

    def _has_answered(self, node_id: int) -> bool:
        hospital = self.roster.nodes.get(node_id)
        return hospital is not None and hospital.name in self._answered

    def _push(self, messages: list[Message]) -> None:
        nodes = [message.metadata.dst_node_id for message in messages]
        if messages:
            ids = self.grid.push_messages(messages)
            self._waiting |= {
                message_id: node_id for message_id, node_id in zip(ids, nodes, strict=False) if message_id
            }
            for node_id in set(nodes) - set(self._waiting.values()):
                self._pauses.failed(node_id)

    def _pulled(self, message_id: str) -> Iterator[Message]:
        if message_id not in self._waiting:
            return
        node_id = self._waiting[message_id]
        for reply in self.grid.pull_messages([message_id]):
            self._waiting.pop(message_id, None)
            if reply.has_error() and reply.error.code in PASSING:
                self._failed[node_id] = reply
                self._pauses.failed(node_id)
                continue
            if self.wants_another(node_id, reply):
                self._ask_anew([node_id])
                continue
            self._close(node_id)
            yield reply

    def _close(self, node_id: int) -> None:
        """The hospital has answered: what else it was asked in this round is not waited for."""
        hospital = self.roster.nodes.get(node_id)
        if hospital is None:
            return
        self._answered.add(hospital.name)
        self._waiting = {
            message_id: asked for message_id, asked in self._waiting.items() if not self._has_answered(asked)
        }

    def _ask_who_came(self) -> None:
        came = self.roster.look() - self._answered
        # One whose message was lost, though its node is there.
        asked = {self.roster.nodes[node_id].name for node_id in self._waiting.values()}
        silent = {name for name, node_id in self.roster.online.items() if self._pauses.is_over(node_id)}
        silent -= self._answered | asked
        self._ask_anew([self.roster.online[name] for name in sorted(came | silent)])

    def _ask_anew(self, nodes: list[int]) -> None:
        messages = [self.question(node_id) for node_id in nodes]
        for message in messages:
            message.metadata.ttl = max(1.0, self._deadline - time.monotonic())
        self._push(messages)


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    left = iter(messages)
    while batch := list(itertools.islice(left, _BATCH)):
        yield batch
