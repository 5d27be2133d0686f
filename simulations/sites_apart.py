"""A Flower `Grid` whose hospitals live in a process of their own: the aggregator's memory is its own.

The hospitals are an `InProcessGrid`; every message crosses a pipe as the bytes of Flower's own protobuf. Only
what is asked for crosses, so a reply is made when it is pulled.
"""

import contextlib
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import torch
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedward.client.app import app as client_app
from fedward.common.thin_app import STUDY_FOLDER
from fedward.simulations.federation import InProcessGrid, LocalGrid

Pipe: TypeAlias = "Connection[Any, Any]"
_NODES, _PUSH, _PULL = "nodes", "push", "pull"


class GridApart(LocalGrid):
    """The aggregator's end of the pipe.

    Attributes:
        received: bytes of all replies that crossed.
    """

    def __init__(self, pipe: Pipe) -> None:
        """Speak over `pipe`."""
        super().__init__()
        self._pipe = pipe
        self.received = 0

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, always connected."""
        return list(self._asked(_NODES, None))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, one at a time."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = str(self._asked(_PUSH, message_to_proto(message).SerializeToString()))
        message.metadata.__dict__["_message_id"] = message_id
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the nodes answer, and yield the replies, one at a time."""
        for message_id in message_ids:
            data = self._asked(_PULL, message_id)
            self.received += len(data)
            yield message_from_proto(ProtoMessage.FromString(data))

    def _asked(self, what: str, body: Any) -> Any:
        self._pipe.send((what, body))
        return self._pipe.recv()


def serve_sites(pipe: Pipe, folder: Path, hospitals: int) -> None:
    """The other end: answer with the hospitals of a study's folder until the pipe is closed."""
    torch.set_num_threads(1)
    grid = InProcessGrid(client_app, hospitals, {STUDY_FOLDER: str(folder)})
    with contextlib.suppress(EOFError):
        while True:
            what, body = pipe.recv()
            pipe.send(_answered(grid, what, body))


def _answered(grid: InProcessGrid, what: str, body: Any) -> Any:
    if what == _NODES:
        return grid.get_node_ids()
    if what == _PUSH:
        (message_id,) = grid.push_messages([message_from_proto(ProtoMessage.FromString(body))])
        return message_id
    (reply,) = grid.pull_messages([body])
    return message_to_proto(reply).SerializeToString()
