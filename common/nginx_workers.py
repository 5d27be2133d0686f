"""nginx's workers, seen through /proc: which take connections, and which have lost their master."""

import contextlib
import os
import signal
import time
from pathlib import Path

_PAUSE_SECONDS = 0.01


def takes_connections(pid: int) -> bool:
    """Whether a process is a worker that is not shutting down."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"worker process" in title and b"shutting down" not in title


def end_workers(folder: Path, polite_seconds: float = 3.0) -> None:
    """End every worker of the gateway in `folder`, each by its number; after some seconds not politely."""
    deadline = time.monotonic() + polite_seconds
    while workers := [pid for pid in _workers() if _is_of(pid, folder)]:
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(_PAUSE_SECONDS)


def _workers() -> list[int]:
    """On this host, those that are shutting down among them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"nginx: worker process" in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def _is_of(pid: int, folder: Path) -> bool:
    """Known by an open log in the folder: a worker's title does not say whose it is."""
    try:
        opened = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(name.startswith(f"{folder.resolve()}/") for name in opened)
