"""The hospital's daemon: one process that holds the data, torch, the ledgers and the keys.

    python -m fedward.client.daemon --state FOLDER

It is started and restarted by `fedward hospital up`; of two on one folder the second is refused.
"""

import argparse
import logging
import sys
import threading
from pathlib import Path

from fedward.client.app import app
from fedward.client.daemon_service import DaemonService, serve
from fedward.client.hospital import open_hospital
from fedward.client.state_folder import DAEMON_LOCK, require_hospital
from fedward.common.errors import Refusal
from fedward.common.locks import only_holder
from fedward.common.logs import log_to_stderr
from fedward.common.supervision import until_signalled

_log = logging.getLogger(__name__)
_LOCK_SECONDS = 5.0  # one that was killed just now may still be there
_GRACE_SECONDS = 5.0


def run(folder: Path, until: threading.Event) -> None:
    """Serve until the event is set.

    Raises:
        DatasetRefused: the folder is no hospital's.
        OutputRefused: another daemon runs here, or the socket cannot be made.
    """
    folder = require_hospital(folder)
    sentence = f"Another daemon runs on {folder}: stop it, or name another state folder."
    with only_holder(folder / DAEMON_LOCK, _LOCK_SECONDS, sentence):
        _open(folder)
        server = serve(DaemonService(app, folder), folder)
        _log.info("the daemon is up")
        until.wait()
        server.stop(_GRACE_SECONDS).wait()


def _open(folder: Path) -> None:
    """Read the data before the first question; what is wrong with it, each question is told."""
    try:
        open_hospital(folder)
    except Exception:
        _log.exception("the hospital cannot be opened")


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="fedward.client.daemon", description="A hospital's daemon.")
    parser.add_argument("--state", type=Path, required=True, help="The hospital's state folder.")
    folder = parser.parse_args().state
    log_to_stderr()
    until = until_signalled()
    try:
        run(folder, until)
    except Refusal as refusal:
        print(f"{refusal.name}: {refusal}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
