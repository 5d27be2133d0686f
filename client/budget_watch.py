"""The last known figures of a hospital's budgets, worked out again when a ledger has grown."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedward.client.state_folder import BUDGETS

_LEAST_SECONDS = 60.0  # between the beginnings of two processes


class BudgetWatch:
    """Starts `fedward.client.budget_figures` where it is due, and takes what it printed; it never waits.

    Attributes:
        found: the figures by data set; empty until they were worked out once.
        is_current: whether they are those of the ledgers as they stand.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is known yet."""
        self.found: dict[str, dict[str, Any]] = {}
        self._folder = folder
        self._of: object = None
        self._begun: object = None
        self._due = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> "BudgetWatch":
        """Take a result that is there, and start a process where a ledger changed since the last."""
        self._take()
        now = self._ledgers()
        if self._process is None and now != self._of and now and time.monotonic() >= self._due:
            self._due, self._begun = time.monotonic() + _LEAST_SECONDS, now
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedward.client.budget_figures", "--state", str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
        return self

    @property
    def is_current(self) -> bool:
        """See the class."""
        return self._of == self._ledgers()

    def close(self) -> None:
        """End the process that works."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _take(self) -> None:
        if self._process is None or self._process.poll() is None:
            return
        printed, _ = self._process.communicate()
        if self._process.returncode == 0:
            with contextlib.suppress(ValueError):
                self.found, self._of = json.loads(printed), self._begun
        self._process = None

    def _ledgers(self) -> tuple[tuple[str, int, int], ...]:
        """Of each file of ledgers: its name, its size, and when it changed."""
        return tuple(
            (path.parent.name, found.st_size, found.st_mtime_ns)
            for path in sorted((self._folder / BUDGETS).rglob("*.jsonl"))
            if (found := path.stat())
        )
