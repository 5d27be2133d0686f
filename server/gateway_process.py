"""The coordinator's gateway as a program that a supervisor runs, and what keeps it up to date.

    python -m fedward.server.gateway_process --state FOLDER

It writes the configuration and becomes nginx. Whoever watches it is told of its end as of any program's.
"""

import argparse
import hashlib
import logging
import sys
import time
from pathlib import Path

from fedward.common.errors import Refusal
from fedward.common.instants import utc_now
from fedward.common.logs import log_to_stderr, told
from fedward.server.coordinator import PROFILE, Coordinator
from fedward.server.gateway import CoordinatorGateway
from fedward.server.sites import SITES

_LOOK_SECONDS, _AGAIN_SECONDS, _REFRESH_SECONDS = 1.0, 10.0, 3600.0
_log = logging.getLogger(__name__)


class GatewayRefresh:
    """Has a running gateway take over what changed: files at once, each hour what ended by the clock.

    The commands that change sites reload it themselves; this also covers one that died before it did, and a
    change that came while the gateway was being started.
    """

    def __init__(self, folder: Path) -> None:
        """Watch a coordinator's folder."""
        self._folder = folder
        self._seen = ""
        self._next_look = self._next_refresh = 0.0

    def tick(self) -> None:
        """Look, at most once a second; a refusal is logged, and tried again."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        seen = digest_of(self._folder / SITES, self._folder / PROFILE)
        if seen == self._seen and now < self._next_refresh:
            return
        try:
            is_running = self._refresh()
        except Refusal as refusal:
            _log.warning(
                "the gateway was not taken over",
                extra={"fields": told(refusal)},
            )
            self._next_look = now + _AGAIN_SECONDS
            return
        if is_running:
            self._seen, self._next_refresh = seen, now + _REFRESH_SECONDS

    def _refresh(self) -> bool:
        gateway = CoordinatorGateway(Coordinator(self._folder))
        is_running = gateway.refresh_if_running(utc_now())
        gateway.nginx.rotate_logs()
        return is_running


def digest_of(*paths: Path) -> str:
    """SHA-256, in hex, of what stands in these files; those that are missing count as empty."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(path.read_bytes() if path.exists() else b"").digest())
    return whole.hexdigest()


def main() -> int:
    """Become nginx; returns the exit code of a refusal."""
    parser = argparse.ArgumentParser(prog="fedward.server.gateway_process", description="A gateway.")
    parser.add_argument("--state", type=Path, required=True, help="The coordinator's state folder.")
    folder = parser.parse_args().state
    log_to_stderr()
    try:
        CoordinatorGateway(Coordinator(folder)).become(utc_now())
    except Refusal as refusal:
        print(f"{refusal.name}: {refusal}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
