"""Reading a study's ``progress.jsonl``, which only shows; it decides nothing."""

import contextlib
import json
from pathlib import Path
from typing import Any

from fedward.common.growing_files import new_lines


def read_events(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The events of whole lines from byte `offset` on, and the offset behind them.

    A line that a crash cut off in the middle is passed over: the file only shows, it decides nothing.
    """
    lines, end = new_lines(path, offset)
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict) and "event" in event], end
