"""Progress on the terminal, read from the study's ``progress.jsonl``: the same for both engines."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedward.common.config import Study
from fedward.server.progress import read_events
from fedward.server.spent import spent_after
from fedward.simulations.wording import spent

_SECONDS = 0.2


class _Watcher:
    """Follows the file and moves two bars: rounds of the study, hospitals of the round."""

    def __init__(self, study: Study, path: Path, bars: Progress) -> None:
        self._study, self._path, self._bars = study, path, bars
        self._offset = path.stat().st_size if path.exists() else 0
        self._rounds = bars.add_task("rounds", total=study.rounds, note="enrolling hospitals")
        self._replies = bars.add_task("hospitals", total=len(study.hospitals), note="")

    def look(self) -> None:
        """Read what is new."""
        events, self._offset = read_events(self._path, self._offset)
        for event in events:
            self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        if event["event"] == "round":
            self._bars.reset(self._replies)
            self._bars.update(self._rounds, completed=event["round"] - 1)
        elif event["event"] == "reply":
            self._bars.advance(self._replies)
        elif event["event"] == "closed":
            self._bars.update(self._rounds, completed=event["round"], note=self._note(event))

    def _note(self, row: dict[str, Any]) -> str:
        auc = "" if row["auc"] is None else f"AUC {row['auc']:.3f} (reference)  "
        lost = f"  {len(row['refusals'])} lost" if row["refusals"] else ""
        cost = spent_after(self._study, row["round"])
        budget = "no privacy" if cost is None else f"epsilon {spent(cost)} of {self._study.target_epsilon:g}"
        return f"{auc}{budget}{lost}"


@contextmanager
def progress_bars(study: Study, path: Path, console: Console) -> Iterator[None]:
    """Show progress while the block runs."""
    columns = (
        TextColumn("[bold]{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        watcher, done = _Watcher(study, path, bars), threading.Event()

        def follow() -> None:
            while not done.wait(_SECONDS):
                watcher.look()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            watcher.look()
