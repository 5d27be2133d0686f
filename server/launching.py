"""Obeys the orders: starts a study's run, sees when its ServerApp died, and starts it again where it was.

A ServerApp holds its study's lock for as long as it lives. Flower would say for most of a minute that a
killed one runs; the lock tells at once. Whatever ended it, the next run goes on from the last checkpoint.
"""

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedward.common.errors import EngineFailed, QuorumMissed, Refusal
from fedward.server.control import Control
from fedward.server.orders import FINISHED, REFUSED, RUNNING, STOPPED, WAITING, Order, Orders, Report
from fedward.server.progress import read_events
from fedward.server.study_folder import PROGRESS, StudyFolder

_LOOK_SECONDS = 1.0
_START_SECONDS = 90.0  # for a ServerApp to take its study's lock
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
# Hospitals that are away may come back by themselves; other refusals need a person.
_PASSING = (QuorumMissed.__name__, EngineFailed.__name__)
_log = logging.getLogger(__name__)


@dataclass
class _Run:
    """A run of a study: of which order, since when, and whether its ServerApp was seen alive."""

    number: int
    pause: float
    run_id: int = 0
    started: float = 0.0
    offset: int = 0
    was_held: bool = False
    due: float = 0.0
    is_over: bool = False


class Publishing(Protocol):
    """Makes a release of a study whose rounds are closed, beside whoever asks."""

    def look(self, folder: StudyFolder) -> str | None:
        """Begin where it is needed; None while it works, then empty, or why it was refused."""


class Launcher:
    """Starts, watches and stops the runs that the orders ask for.

    Without `publishing`, in a trial, a study is finished with its last round.
    """

    def __init__(self, orders: Orders, control: Control, publishing: Publishing | None = None) -> None:
        """Prepare; nothing is started yet."""
        self._orders, self._control, self._publishing = orders, control, publishing
        self._runs: dict[str, _Run] = {}
        self._due = 0.0

    def tick(self) -> None:
        """Look after every study, at most once a second.

        Raises:
            Refusal: the state folder is damaged or full.
        """
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LOOK_SECONDS
        for order in self._orders.all():
            self._look_after(order)

    def _look_after(self, order: Order) -> None:
        run = self._runs.get(order.folder)
        if run is None or run.number != order.number:
            if run is not None:
                self._stop(run)
            run = self._runs[order.folder] = _Run(order.number, _FIRST_PAUSE)
        folder = StudyFolder(Path(order.folder))
        if folder.final.exists():
            self._finish(order, run, folder)
        elif not order.wanted:
            self._say(order, STOPPED, run)
        elif not run.is_over:
            self._keep_running(order, run, folder)

    def _finish(self, order: Order, run: _Run, folder: StudyFolder) -> None:
        if run.is_over:
            return
        said = "" if self._publishing is None else self._publishing.look(folder)
        run.is_over = said is not None
        if said:
            _log.warning(
                "a run ended",
                extra={"fields": {"study": folder.path.name, "refusal": said.partition(":")[0]}},
            )
        self._say(order, RUNNING if said is None else REFUSED if said else FINISHED, run, said or "")

    def _keep_running(self, order: Order, run: _Run, folder: StudyFolder) -> None:
        if folder.is_held:
            run.was_held, run.pause = True, _FIRST_PAUSE
            self._say(order, RUNNING, run)
        elif run.run_id and (run.was_held or time.monotonic() - run.started > _START_SECONDS):
            self._ended(order, run, folder)
        elif not run.run_id and time.monotonic() >= run.due:
            self._start(order, run, folder)

    def _start(self, order: Order, run: _Run, folder: StudyFolder) -> None:
        try:
            folder.study()
        except Refusal as refusal:
            run.is_over = True
            self._say(order, REFUSED, run, f"{refusal.name}: {refusal}")
            return
        watched = folder.path / PROGRESS
        run.offset = watched.stat().st_size if watched.exists() else 0
        try:
            run.run_id = self._control.start(folder.path)
        except EngineFailed as refusal:
            self._pause(run)
            self._say(order, WAITING, run, f"{refusal.name}: {refusal}")
            return
        run.started, run.was_held = time.monotonic(), False
        _log.info("a run is started", extra={"fields": {"run": run.run_id, "study": folder.path.name}})
        self._say(order, RUNNING, run)

    def _ended(self, order: Order, run: _Run, folder: StudyFolder) -> None:
        """The ServerApp is gone and left no model: it was killed, or it refused."""
        if folder.final.exists():
            return
        refusals = [
            event
            for event in read_events(folder.path / PROGRESS, run.offset)[0]
            if event["event"] == "refused"
        ]
        self._stop(run)
        said = "The study's process ended."
        if refusals:
            said = f"{refusals[-1]['name']}: {refusals[-1]['message']}"
            run.is_over = refusals[-1]["name"] not in _PASSING
        _log.warning(
            "a run ended",
            extra={
                "fields": {"study": folder.path.name, "refusal": refusals[-1]["name"] if refusals else ""}
            },
        )
        self._pause(run)
        self._say(order, REFUSED if run.is_over else WAITING, run, said)

    def _stop(self, run: _Run) -> None:
        if run.run_id:
            with contextlib.suppress(EngineFailed):  # it has ended meanwhile
                self._control.stop(run.run_id)
        run.run_id, run.was_held = 0, False

    def _pause(self, run: _Run) -> None:
        run.due = time.monotonic() + run.pause
        run.pause = min(2 * run.pause, _LONGEST_PAUSE)

    def _say(self, order: Order, state: str, run: _Run, said: str = "") -> None:
        self._orders.report(order, Report(state, said, run.run_id, order.number))
