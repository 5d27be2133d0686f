"""Two engines for the same ServerApp and ClientApp: in this process, or Flower's simulation on Ray.

`inproc` is a Flower `Grid` whose nodes are calls of the ClientApp: no Ray, no ports, no processes, and a
reply is computed only when it is pulled, so one update is in memory at a time.
"""

import itertools
import logging
from collections.abc import Iterable
from pathlib import Path

from flwr.app import DEFAULT_TTL, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedward.client.app import app as client_app
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server.app import app as server_app

SERVER_NODE = 1
_log = logging.getLogger(__name__)


class LocalGrid(Grid):
    """What a Flower Grid without a SuperLink has: one run, and an identity to stamp messages with."""

    def __init__(self) -> None:
        """Set what Flower's own launchers would: the identity of the task."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER_NODE

    def set_run(self, run: Run) -> None:
        """There is one run in a process."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl or DEFAULT_TTL)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull."""
        return list(self.pull_messages(self.push_messages(messages)))


class InProcessGrid(LocalGrid):
    """A Flower Grid over hospitals in this process.

    Args:
        app: the ClientApp that every node runs.
        hospitals: number of nodes; node ids are 100, 101, ..., partition ids 0, 1, ....
        run_config: of every node.
    """

    def __init__(
        self, app: ClientApp, hospitals: int, run_config: dict[str, bool | float | int | str]
    ) -> None:
        """Connect the nodes."""
        super().__init__()
        self._app = app
        self._ids = itertools.count(1)
        self._pending: dict[str, Message] = {}
        self._contexts = {
            100 + index: Context(
                run_id=1,
                node_id=100 + index,
                node_config={"partition-id": index, "num-partitions": hospitals},
                state=RecordDict(),
                run_config=run_config,
            )
            for index in range(hospitals)
        }

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, always connected."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; they are delivered when their reply is pulled. An unknown node's id is ``""``."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        if message.metadata.dst_node_id not in self._contexts:
            return ""
        message_id = f"m{next(self._ids)}"
        message.metadata.__dict__["_message_id"] = message_id
        self._pending[message_id] = message
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the nodes that these messages went to, and yield their replies.

        As from Flower, an id that is unknown or was pulled before, and an app that raises, give an error.
        """
        for message_id in message_ids:
            message = self._pending.pop(message_id, None)
            yield _unavailable(message_id) if message is None else self._run(message)

    def _run(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception:
            _log.exception("a node's app raised")
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=message)


def _unavailable(message_id: str) -> Message:
    """What Flower's SuperLink says, in its own name, of a message that it does not have."""
    question = Message(RecordDict(), SERVER_NODE, MessageType.QUERY)
    question.metadata.__dict__["_message_id"] = message_id
    return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE), reply_to=question)


def run_in_process(folder: Path, hospitals: int) -> None:
    """Run the study of `folder` in this process.

    Raises:
        Refusal: as the ServerApp raises it.
    """
    run_config: dict[str, bool | float | int | str] = {STUDY_FOLDER: str(folder)}
    grid = InProcessGrid(client_app, hospitals, run_config)
    context = Context(
        run_id=1, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config=run_config
    )
    server_app(grid, context)
