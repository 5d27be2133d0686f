"""The daemon's gRPC service on a Unix socket: one question at a time, answered by the hospital's own app."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedward.client.app import STATE_FOLDER
from fedward.client.frames import ASK, HEALTH, Request, pack_answer, unpack_request
from fedward.client.state_folder import SOCKET, socket_address
from fedward.common.errors import OutputRefused, PayloadRefused
from fedward.common.logs import ANSWERED
from fedward.common.reply_codes import REFUSED

_WORKERS = 4
_NODE = 1
_log = logging.getLogger(__name__)


class DaemonService(grpc.GenericRpcHandler):
    """Answers the task runner's questions from one state folder.

    Args:
        app: the hospital's ClientApp, in which every handler stands once.
        folder: the hospital's state folder.
    """

    def __init__(self, app: ClientApp, folder: Path) -> None:
        """Prepare; nothing is opened before the first question."""
        # Flower stamps messages with the identity of the task that its own launchers set.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, _NODE
        self._app = app
        self._folder = folder
        self._turn = threading.Lock()

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method, or None."""
        handlers: dict[str, Callable[[Iterator[bytes], Any], Iterator[bytes]]] = {
            ASK: self.ask,
            HEALTH: self.health,
        }
        handler = handlers.get(handler_call_details.method)
        return None if handler is None else grpc.stream_stream_rpc_method_handler(handler)

    def health(self, chunks: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Answer that the daemon is there."""
        yield b"up"

    def ask(self, chunks: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """Answer one message; whatever it holds, the daemon goes on."""
        try:
            request = unpack_request(chunks)
            with self._turn:
                # Work that nobody waits for any more is not begun; what is begun is finished and stored.
                answer = self._timed(request) if context.is_active() else Error(ErrorCode.UNKNOWN)
        except PayloadRefused as refusal:
            answer = Error(REFUSED, f"{refusal.name}: {refusal}")
        except Exception:
            # The text of an unexpected exception may hold private values: it stays in the local log.
            _log.exception("a message could not be answered")
            answer = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "")
        yield from pack_answer(answer)

    def _timed(self, request: Request) -> RecordDict | Error:
        started = time.monotonic()
        answer = self._answer(request)
        _log.info(ANSWERED, extra={"fields": _entry(request, answer, time.monotonic() - started)})
        return answer

    def _answer(self, request: Request) -> RecordDict | Error:
        message = Message(request.content, _NODE, request.kind, ttl=max(1.0, request.seconds))
        context = Context(
            run_id=1,
            node_id=_NODE,
            # The folder is this hospital's own; nothing of the coordinator's run configuration is here.
            node_config={STATE_FOLDER: str(self._folder)},
            state=RecordDict(),
            run_config={},
        )
        reply = self._app(message, context)
        return reply.error if reply.has_error() else reply.content


def _entry(request: Request, answer: RecordDict | Error, seconds: float) -> dict[str, object]:
    """A line of the log: what kind of message, how long, and whether an error was its answer."""
    code = answer.code if isinstance(answer, Error) else 0
    return {"kind": request.kind, "seconds": round(seconds, 3), "reply": code}


def serve(service: DaemonService, folder: Path) -> grpc.Server:
    """Serve on the folder's socket, which only its owner may open.

    Raises:
        OutputRefused: the socket cannot be made.
    """
    address = socket_address(folder)
    (folder / SOCKET).unlink(missing_ok=True)
    server = grpc.server(
        ThreadPoolExecutor(_WORKERS),
        handlers=[service],
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    previous = os.umask(0o177)
    try:
        if server.add_insecure_port(address) == 0:
            raise OutputRefused(f"{folder / SOCKET} cannot be made; name another state folder.")
        server.start()
    except RuntimeError as error:
        raise OutputRefused(f"{folder / SOCKET} cannot be made; name another state folder.") from error
    finally:
        os.umask(previous)
    return server
