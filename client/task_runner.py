"""Takes tasks from the SuperNode and hands their messages to the daemon: bytes in, bytes out.

    python -m fedward.client.task_runner --state FOLDER --runtime HOST:PORT

A long-lived process in place of Flower's own, which would start Python anew for every message and run the
coordinator's bundle. This one knows neither torch nor data, unpacks no bundle, and refuses the messages of a
run whose bundle is not on the list.
"""

import argparse
import logging
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import message_to_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient

from fedward.client.daemon_client import ask
from fedward.client.frames import Request
from fedward.client.state_folder import NODE_ID, SECRET_FILE
from fedward.common.errors import PayloadRefused
from fedward.common.files import write_atomically
from fedward.common.logs import log_to_stderr
from fedward.common.reply_codes import NOT_APPROVED
from fedward.common.supervision import until_signalled
from fedward.common.thin_app import bundle, bundle_hash

_COMPONENT = "flwr-clientapp"  # the SuperNode checks versions by these names
_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_LONGEST_PULL_PAUSE_SECONDS = 0.5
_LONGEST_PULL_SECONDS = 3600.0
_LONGEST_SECONDS = 12 * 3600.0  # of a message, as Flower's own
_SPARE_SECONDS = 1.0  # left of a message's time for its reply's way back
_log = logging.getLogger(__name__)


class TaskRunner:
    """Runs one task after another.

    Args:
        folder: the hospital's state folder, with the daemon's socket and the SuperNode's secret.
        runtime: address of the SuperNode's Runtime API, on loopback.
        approved: SHA-256 of every bundle whose runs may ask this hospital.
    """

    def __init__(self, folder: Path, runtime: str, approved: Iterable[str]) -> None:
        """Prepare; nothing is connected yet."""
        self._folder = folder
        self._runtime = runtime
        self._approved = frozenset(approved)
        self._node_id = 0
        self._given_up = threading.Event()
        self._is_stuck = threading.Event()

    def run(self, until: threading.Event) -> bool:
        """Take tasks until the event is set; whatever happens to the SuperNode or a task, go on.

        Returns whether it ended well. It does not where a reply was handed over in part, for whose rest the
        SuperNode would wait for ever, nor where a task was given up: both are restarted together.
        """
        secret = (self._folder / SECRET_FILE).read_bytes()
        signer = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
        )
        pause = _PAUSE_SECONDS
        with self._client("SuperExec", signer) as client:
            while not until.wait(pause) and not self._is_stuck.is_set():
                try:
                    taken = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
                    pause = _PAUSE_SECONDS
                except (httpx.HTTPError, ValueError) as error:
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    _log.info(
                        "the SuperNode does not answer; trying again",
                        extra={"fields": {"error": type(error).__name__}},
                    )
                    continue
                if taken.token:
                    self._begin(taken.token)
        return not self._is_stuck.is_set()

    def _begin(self, token: str) -> None:
        """Do a task beside this loop, and give up the one before.

        The SuperNode has one message at a time in hand, so a new task says that the last one is answered or
        dead. A run that ends while its message is fetched leaves a task whose message never comes whole.
        """
        self._given_up.set()
        self._given_up = threading.Event()
        threading.Thread(target=self._do, args=(token, self._given_up), daemon=True).start()

    def _client(self, component: str, *more: object) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._runtime,
            insecure=True,  # on loopback, within this machine
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), *more],  # type: ignore[list-item]
        )

    def _do(self, token: str, given_up: threading.Event) -> None:
        with self._client(_COMPONENT, RuntimeTokenHttpInterceptor(token)) as client:
            beating = HeartbeatSender(lambda: given_up.is_set() or _beat(client))
            beating.start()
            try:
                self._answer(client, given_up)
            except Exception:
                _log.exception("a task failed")
            finally:
                beating.stop()

    def _answer(self, client: RuntimeHttpClient, given_up: threading.Event) -> None:
        task = client.PullTaskInput(PullTaskInputRequest())
        self._note_node(task.context.node_id)
        message = _pull(client, task, given_up)
        reply = None if message is None else self._reply(task, message)
        if given_up.is_set():
            # The SuperNode would make an error of it and, one reply behind from then on, send each answer
            # only when the next question comes.
            self._is_stuck.set()
            return
        if reply is None:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="given up"))
            return
        self._hand_over(client, task, reply)
        client.PushTaskOutput(
            PushTaskOutputRequest(context=task.context, sub_status=SubStatus.COMPLETED, details="")
        )

    def _hand_over(self, client: RuntimeHttpClient, task: PullTaskInputResponse, reply: Message) -> None:
        try:
            _push(client, task, reply)
        except Exception:
            self._is_stuck.set()
            raise

    def _note_node(self, node_id: int) -> None:
        """For the next SuperNode, which signs this one off."""
        if node_id != self._node_id:
            write_atomically(self._folder / NODE_ID, str(node_id).encode(), 0o600)
            self._node_id = node_id

    def _reply(self, task: PullTaskInputResponse, message: Message) -> Message:
        # Of the bytes, never the hash that stands beside them.
        if bundle_hash(task.fab.content) not in self._approved:
            _log.warning("refused a bundle", extra={"fields": {"bundle": bundle_hash(task.fab.content)}})
            words = "The hospital has not approved the bundle that the run came with."
            return Message(Error(NOT_APPROVED, words), reply_to=message)
        try:
            request = Request(message.metadata.message_type, _seconds_left(message), message.content)
            answer = ask(self._folder, request)
        except PayloadRefused:
            _log.exception("the daemon's answer cannot be read")
            answer = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "")
        return Message(answer, reply_to=message)


def _seconds_left(message: Message) -> float:
    left = message.metadata.created_at + message.metadata.ttl - time.time() - _SPARE_SECONDS
    return min(max(left, 1.0), _LONGEST_SECONDS)


def _beat(client: RuntimeHttpClient) -> bool:
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except (httpx.HTTPError, ValueError):
        return False
    return True


def _pull(
    client: RuntimeHttpClient, task: PullTaskInputResponse, given_up: threading.Event
) -> Message | None:
    """The task's message, once the SuperNode has all of it; None where there is none, or it is given up."""
    found = client.PullMessages(PullAppMessagesRequest())
    if not found.messages_list:
        return None
    node, run_id, tree = Node(node_id=task.context.node_id), task.run.run_id, found.message_object_trees[0]
    pull = make_pull_object_fn_protobuf(client.PullObject, node, run_id)

    def pulled(object_id: str) -> bytes:
        if given_up.is_set():
            raise ObjectPullError(object_id, "given up")
        return pull(object_id)

    try:
        message = pull_and_inflate_object_from_tree(
            tree,
            pulled,
            make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id),
            return_type=Message,
            max_time=_LONGEST_PULL_SECONDS,
            max_tries_per_object=None,
            initial_backoff=_PAUSE_SECONDS,
            backoff_cap=_LONGEST_PULL_PAUSE_SECONDS,
        )
    except ObjectPullError as error:
        _log.info("a message did not come whole", extra={"fields": {"error": type(error).__name__}})
        return None
    # A message without its content does not carry its id.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _push(client: RuntimeHttpClient, task: PullTaskInputResponse, reply: Message) -> None:
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        pushed = client.PushMessages(
            PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[tree],
            )
        )
        push_objects(
            objects,
            make_push_object_fn_protobuf(
                client.PushObject,
                Node(node_id=task.context.node_id),
                run_id=task.run.run_id,
                session_id=pushed.session_id,
            ),
            object_ids_to_push=set(pushed.objects_to_push),
        )


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="fedward.client.task_runner", description="Relays a site's tasks.")
    parser.add_argument("--state", type=Path, required=True, help="The hospital's state folder.")
    parser.add_argument("--runtime", required=True, help="Address of the SuperNode's Runtime API.")
    parser.add_argument("--approve", action="append", default=[], help="SHA-256 of a further bundle.")
    options = parser.parse_args()
    log_to_stderr()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    until = until_signalled()
    approved = [bundle_hash(bundle()), *options.approve]
    return 0 if TaskRunner(options.state.resolve(), options.runtime, approved).run(until) else 1


if __name__ == "__main__":
    sys.exit(main())
