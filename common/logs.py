"""The log of a process: one JSON object a line, with no more than what an administrator may pass on.

    {"event":"a message was answered","kind":"train","level":"info","logger":"fedward.client.daemon_service",
     "seconds":0.41,"time":"2026-01-31T12:00:00.000Z"}

A hospital's log may be collected, forwarded and read by people who may not read a record. So an event is a
constant sentence, its fields are those of `FIELDS`, and of an error there is its kind and the lines of code
that it passed, never its text: a library's error may quote what it was given. What other libraries log is
only said to have been said, for the same reason.
"""

import json
import logging
import re
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from fedward.common.errors import (
    BudgetRefused,
    EngineFailed,
    GatewayFailed,
    LedgerRefused,
    OutputRefused,
    Refusal,
)

# Every field that a line may have beside time, level, logger and event, and what stands in it.
FIELDS = {
    "bundle": "SHA-256 of a run's bundle",
    "code": "a process's exit code",
    "error": "an error's kind",
    "kind": "Flower's type of a message",
    "line": "file:line of another library's call",
    "port": "of loopback",
    "process": "a supervised process's name",
    "refusal": "a refusal's name",
    "reply": "code of an answer's error; 0 is none",
    "run": "Flower's id of a run",
    "seconds": "that something took",
    "sentence": "a refusal's, of a kind that names nothing but the site's own ledgers, disk and programs",
    "study": "the name of a study's folder, at the coordinator",
    "where": "the lines of code that an error passed, innermost last",
}
ALWAYS = ("time", "level", "logger", "event")
ANSWERED = "a message was answered"  # the event of the hospital's daemon, which its metrics count
_TELLING = (BudgetRefused, EngineFailed, GatewayFailed, LedgerRefused, OutputRefused)
_FOLDERS = re.compile(r"/(?:[^/\s]+/)+")
_OWN = ("fedward", "__main__")  # a module of ours that runs as a program is called the latter
_MOST_FRAMES = 20
_log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object without line breaks; fields come as ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a field that is not in `FIELDS` is left out."""
        found: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.name.split(".")[0] in _OWN:
            found |= {"event": str(record.msg)}
            fields: dict[str, Any] = getattr(record, "fields", {})
            found |= {name: value for name, value in fields.items() if name in FIELDS}
        else:
            found |= {"event": "another library said something", "line": f"{record.filename}:{record.lineno}"}
        if record.exc_info and record.exc_info[1] is not None:
            found |= _error(record.exc_info[1])
        return json.dumps(found, sort_keys=True, separators=(",", ":"), default=lambda _: None)


def log_to_stderr() -> None:
    """The log of a program that a supervisor runs, errors that end it included."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(
        level=logging.INFO, handlers=[handler], force=True
    )  # libraries may have set up another
    logging.captureWarnings(True)
    sys.excepthook = _ended
    threading.excepthook = lambda told: _ended(told.exc_type, told.exc_value, told.exc_traceback)


def told(refusal: Refusal) -> dict[str, str]:
    """The fields of a refusal: its name, and its sentence where a record or its file cannot stand in it.

    Of the others `fedward hospital doctor` says the sentence, to whoever may read the state folder.
    """
    if not isinstance(refusal, _TELLING):
        return {"refusal": refusal.name}
    return {"refusal": refusal.name, "sentence": _FOLDERS.sub("", str(refusal))}


def _ended(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None:
        _log.critical("an error ended this", exc_info=(kind, error, trace))


def _time(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _error(error: BaseException) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
    where = [f"{_module(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "where": where}


def _module(path: str) -> str:
    """The last two parts of a source's path: enough to find it, and nothing of where things stand here."""
    return "/".join(path.split("/")[-2:])
