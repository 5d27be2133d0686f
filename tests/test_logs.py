"""A line of the log is one JSON object with known fields, and holds no text that a record could be in."""

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from fedward.common.errors import DatasetRefused, OutputRefused, PolicyRefused
from fedward.common.logs import ALWAYS, FIELDS, JsonLines, told

PROJECT = Path(__file__).resolve().parent.parent
PATIENT = "Miller^Anna^19431224"
# Fields that a function makes; the tests of what they make are in test_prometheus.py and below.
MADE = {"_entry": {"kind", "seconds", "reply"}, "told": {"refusal", "sentence"}}
CALLS = {"debug", "info", "warning", "error", "exception", "critical"}
# Logs to the terminal of whoever simulates, on public data.
SOURCES = [path for room in ("client", "common", "server") for path in sorted((PROJECT / room).rglob("*.py"))]


def _line(record: logging.LogRecord) -> dict[str, object]:
    text = JsonLines().format(record)
    assert "\n" not in text
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def _record(name: str, message: str, *arguments: object, **more: object) -> logging.LogRecord:
    record = logging.LogRecord(name, logging.INFO, "/usr/lib/x.py", 7, message, arguments, None)
    for field, value in more.items():
        setattr(record, field, value)
    return record


def test_a_line_has_its_time_its_event_and_the_known_fields_only() -> None:
    fields = {"seconds": 0.4, "kind": "train", "patient": PATIENT}
    line = _line(_record("fedward.client.daemon", "a message was answered", fields=fields))
    assert line.pop("time").endswith("Z")  # type: ignore[attr-defined]
    assert line == {
        "level": "info",
        "logger": "fedward.client.daemon",
        "event": "a message was answered",
        "seconds": 0.4,
        "kind": "train",
    }


def test_an_error_is_told_by_its_kind_and_place_and_never_by_its_text() -> None:
    try:
        int(PATIENT)
    except ValueError as error:
        record = _record("fedward.client.app", "a round failed", exc_info=(type(error), error, None))
        line = _line(record)
    assert line["error"] == "ValueError"
    assert line["where"] == [f"tests/test_logs.py:{line['where'][0].split(':')[1].split()[0]} " + _here()]  # type: ignore[index]
    assert PATIENT not in json.dumps(line)


def _here() -> str:
    return "test_an_error_is_told_by_its_kind_and_place_and_never_by_its_text"


def test_of_another_library_only_the_place_is_told() -> None:
    line = _line(_record("pydicom", "Invalid value for %s", PATIENT))
    assert PATIENT not in json.dumps(line)
    assert line["line"] == "x.py:7"


def test_a_module_of_ours_that_runs_as_a_program_is_heard() -> None:
    assert _line(_record("__main__", "the daemon is up"))["event"] == "the daemon is up"


def test_every_event_is_a_constant_and_every_field_is_on_the_list() -> None:
    """What the sources log, call by call: no sentence is put together, no field is new."""
    assert not set(FIELDS) & set(ALWAYS)
    seen = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and _is_log(node)):
                continue
            place = f"{path.name}:{node.lineno}"
            assert len(node.args) == 1, place
            assert isinstance(node.args[0], ast.Constant) or ast.unparse(node.args[0]) == "ANSWERED", place
            for keyword in node.keywords:
                assert keyword.arg in ("extra", "exc_info"), place
                if keyword.arg == "extra":
                    seen |= _fields(keyword.value, place)
    assert seen <= set(FIELDS)
    assert len(seen) > 5


def _is_log(node: ast.Call) -> bool:
    called = node.func
    return (
        isinstance(called, ast.Attribute)
        and called.attr in CALLS
        and isinstance(called.value, ast.Name)
        and called.value.id in ("_log", "_logger", "logging")
    )


def _fields(extra: ast.expr, place: str) -> set[str]:
    assert isinstance(extra, ast.Dict), place
    assert [ast.unparse(key) for key in extra.keys if key] == ["'fields'"], place
    (fields,) = extra.values
    if isinstance(fields, ast.Call):
        return MADE[ast.unparse(fields.func)]
    assert isinstance(fields, ast.Dict), place
    return {ast.literal_eval(key) for key in fields.keys if key}


def test_a_refusals_sentence_is_told_where_no_record_can_stand_in_it_and_without_folders() -> None:
    full = OutputRefused("/srv/miller/site/budget/ledger.jsonl is full: make room.")
    assert told(full) == {"refusal": "OutputRefused", "sentence": "ledger.jsonl is full: make room."}
    assert told(DatasetRefused(f"{PATIENT} is no image.")) == {"refusal": "DatasetRefused"}
    assert told(PolicyRefused("Mrs_Miller is no rule.")) == {"refusal": "PolicyRefused"}


@pytest.mark.parametrize(
    "ending",
    ["int('Miller')", "import threading; threading.Thread(target=lambda: int('Miller')).start()"],
)
def test_an_error_that_ends_a_program_is_a_line_too(ending: str) -> None:
    code = f"from fedward.common.logs import log_to_stderr; log_to_stderr(); {ending}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["error"] == "ValueError"
    assert "Miller" not in line


def test_a_warning_is_a_line_without_its_text() -> None:
    code = "import warnings; from fedward.common.logs import log_to_stderr; log_to_stderr()"
    code += f"; warnings.warn({PATIENT!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stderr)["logger"] == "py.warnings"
    assert "Miller" not in done.stderr
