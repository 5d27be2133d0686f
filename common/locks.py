"""A lock between processes, on a file beside what it guards (flock(2)); it dies with its holder."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from fedward.common.errors import LedgerRefused, OutputRefused
from fedward.common.files import refused_output

_PAUSE_SECONDS = 0.005


class FileLock:
    """An exclusive lock on `path`, between processes and between threads; the holder may enter again.

    As flock(2) belongs to the open file, kill -9 releases it; nothing is ever left to clean up. The file
    stays, for removing it would let two holders in.
    """

    def __init__(self, path: Path, wait_seconds: float = 30.0) -> None:
        """Name the lock; `wait_seconds` is how long entering may wait for another holder."""
        self.path = path
        self.wait_seconds = wait_seconds
        self._threads = threading.RLock()
        self._descriptor = -1
        self._depth = 0

    @property
    def depth(self) -> int:
        """How often the holder has entered; 0 where this object does not hold the lock."""
        return self._depth

    def __enter__(self) -> "FileLock":
        """Take the lock.

        Raises:
            LedgerRefused: busy for longer than the limit.
            OutputRefused: the lock's file cannot be opened.
        """
        deadline = time.monotonic() + self.wait_seconds
        if not self._threads.acquire(timeout=self.wait_seconds):
            raise self._busy()
        try:
            if self._depth == 0:
                self._descriptor = self._taken(deadline)
            self._depth += 1
        except BaseException:
            self._threads.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; the outermost exit gives the lock back."""
        self._depth -= 1
        if self._depth == 0:
            os.close(self._descriptor)
        self._threads.release()

    def _taken(self, deadline: float) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise refused_output(self.path, error) from error
        try:
            while not _try_lock(descriptor):
                if time.monotonic() >= deadline:
                    raise self._busy()
                time.sleep(_PAUSE_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _busy(self) -> LedgerRefused:
        return LedgerRefused(
            f"{self.path.name} is busy: another process or thread has held it for {self.wait_seconds:g} s; "
            "stop the other one, or try again."
        )


@contextmanager
def only_holder(path: Path, wait_seconds: float, sentence: str) -> Iterator[None]:
    """Be the only process that does what the lock on `path` stands for; a killed one holds nothing.

    Raises:
        OutputRefused: another process does it; with `sentence`, which says what to do.
    """
    lock = FileLock(path, wait_seconds)
    try:
        lock.__enter__()
    except LedgerRefused as refusal:
        raise OutputRefused(sentence) from refusal
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
