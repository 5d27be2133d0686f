"""The hospital's daemon: one process that holds the data, torch, the ledgers and the keys.

    python -m fedward.client.daemon --state FOLDER

It is started and restarted by `fedward hospital up`; of two on one folder the second is refused.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedward.client.app import app
from fedward.client.daemon_service import DaemonService, serve
from fedward.client.hospital import PROFILE
from fedward.common.errors import DatasetRefused, LedgerRefused, OutputRefused, Refusal
from fedward.common.locks import FileLock

LOCK = "daemon.lock"
_LOCK_SECONDS = 5.0  # one that was killed just now may still be there
_GRACE_SECONDS = 5.0


@contextmanager
def only_daemon(folder: Path, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Be the folder's only daemon; one that was killed holds nothing any more.

    Raises:
        OutputRefused: another daemon runs on this folder.
    """
    lock = FileLock(folder / LOCK, seconds)
    try:
        lock.__enter__()
    except LedgerRefused as refusal:
        raise OutputRefused(
            f"Another daemon runs on {folder}: stop it, or name another state folder."
        ) from refusal
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def run(folder: Path, until: threading.Event) -> None:
    """Serve until the event is set.

    Raises:
        DatasetRefused: the folder is no hospital's.
        OutputRefused: another daemon runs here, or the socket cannot be made.
    """
    if not (folder / PROFILE).is_file():
        raise DatasetRefused(f"{folder} is no hospital's state folder: name one with --state.")
    with only_daemon(folder):
        server = serve(DaemonService(app, folder), folder)
        logging.getLogger(__name__).info("the daemon is up")
        until.wait()
        server.stop(_GRACE_SECONDS).wait()


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="fedward.client.daemon", description="A hospital's daemon.")
    parser.add_argument("--state", type=Path, required=True, help="The hospital's state folder.")
    folder = parser.parse_args().state
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    until = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: until.set())
    try:
        run(folder, until)
    except Refusal as refusal:
        print(f"{refusal.name}: {refusal}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
