"""The task runner's side of the daemon's socket: it waits for a daemon that is being restarted."""

import time
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Error, RecordDict

from fedward.client.frames import ASK, HEALTH, Request, pack_request, unpack_answer
from fedward.client.state_folder import socket_address
from fedward.common.reply_codes import NO_DAEMON

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_PAUSE_SECONDS = 0.2
# The daemon was not there, or died at work: it is asked again, and stores the reply before it sends it.
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)


def _channel(folder: Path) -> grpc.Channel:
    return grpc.insecure_channel(socket_address(folder), options=_OPTIONS)


def ask(folder: Path, request: Request) -> RecordDict | Error:
    """The daemon's answer, or an error of code `NO_DAEMON` when the request's time is up.

    Raises:
        PayloadRefused: the answer cannot be read.
    """
    deadline = time.monotonic() + request.seconds
    while (left := deadline - time.monotonic()) > 0.0:
        with _channel(folder) as channel:
            try:
                method: Any = channel.stream_stream(ASK)
                return unpack_answer(method(pack_request(request), timeout=left))
            except grpc.RpcError as error:
                if error.code() not in _PASSING:
                    break
        time.sleep(_PAUSE_SECONDS)
    return Error(NO_DAEMON, "The hospital's daemon did not answer in time.")


def is_up(folder: Path, seconds: float = 2.0) -> bool:
    """Whether a daemon answers on the folder's socket."""
    with _channel(folder) as channel:
        try:
            return b"".join(channel.stream_stream(HEALTH)(iter(()), timeout=seconds)) == b"up"
        except grpc.RpcError:
            return False
