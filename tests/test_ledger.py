"""A ledger keeps what it acknowledged, repairs what it never did, and refuses everything else by line."""

import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common import chain
from fedward.common.chain import Head
from fedward.common.errors import LedgerRefused, Refusal
from fedward.common.ledger import Ledger, verify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    made = Ledger.create(path, "budget")
    for number in range(5):
        made.append("charge", {"number": number, "rate": 0.109})
    return made


def kinds(opened: Ledger) -> list[str]:
    return [entry.kind for entry in opened.entries]


def test_what_was_appended_is_there_after_a_restart(ledger: Ledger, path: Path) -> None:
    opened = Ledger.open(path)
    assert [entry.body["number"] for entry in opened.entries[1:]] == [0, 1, 2, 3, 4]
    assert opened.head == ledger.head == verify(path)
    assert (opened.id, opened.purpose) == (ledger.id, "budget")


def test_an_entry_is_synced_before_append_returns(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            events.append(name)
            return call(*arguments)

        return wrapper

    for name in ("write", "fsync"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    ledger.append("charge", {})
    assert events == ["write", "fsync"]


def test_two_ledgers_never_share_an_id(tmp_path: Path) -> None:
    assert Ledger.create(tmp_path / "a", "budget").id != Ledger.create(tmp_path / "b", "budget").id


def test_a_ledger_is_not_created_over_another(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerRefused, match="already"):
        Ledger.create(path, "budget")
    path.unlink()
    with pytest.raises(LedgerRefused, match="already"):
        Ledger.create(path, "budget")
    with pytest.raises(LedgerRefused, match="no ledger"):
        Ledger.open(path)


def test_every_flipped_byte_is_refused(ledger: Ledger, path: Path) -> None:
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 0x04
        path.write_bytes(bytes(bad))
        with pytest.raises(LedgerRefused):
            Ledger.open(path)
        with pytest.raises(LedgerRefused):
            verify(path)


def test_the_damaged_line_is_named(ledger: Ledger, path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"number":2', b'"number":0')
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerRefused, match="line 4: it was altered"):
        Ledger.open(path)


@pytest.mark.parametrize("missing", range(6))
def test_a_missing_line_is_refused(ledger: Ledger, path: Path, missing: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[missing]
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerRefused, match="line"):
        Ledger.open(path)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 500))
def test_a_cut_tail_of_acknowledged_lines_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "ledger.jsonl"
    made = Ledger.create(path, "budget")
    made.append("charge", {"number": 1})
    made.append("charge", {"number": 2})
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(LedgerRefused):
        Ledger.open(path)
    with pytest.raises(LedgerRefused):
        verify(path)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_an_unfinished_line_that_nobody_was_told_of_is_cut_off_and_recorded(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = tmp_path_factory.mktemp("torn") / "ledger.jsonl"
    made = Ledger.create(path, "budget")
    made.append("charge", {"number": 1})
    line = chain.link(made.head, "charge", {"number": 2}).line()
    torn = line[: max(1, int(share * len(line)))]
    with path.open("ab") as file:
        file.write(torn)
    assert verify(path) == made.head
    opened = Ledger.open(path)
    assert kinds(opened) == ["genesis", "charge", "torn-tail"]
    assert opened.entries[-1].body["bytes"] == len(torn)
    assert Ledger.open(path).head == opened.head


def test_a_whole_line_that_was_not_acknowledged_counts(ledger: Ledger, path: Path) -> None:
    with path.open("ab") as file:
        file.write(chain.link(ledger.head, "charge", {"number": 5}).line())
    assert Ledger.open(path).entries[-1].body["number"] == 5


def test_a_torn_tail_whose_acknowledgement_is_unknown_is_refused(ledger: Ledger, path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"body"')
    path.with_name("ledger.jsonl.head").unlink()
    with pytest.raises(LedgerRefused, match="unfinished line 7"):
        Ledger.open(path)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"x" * 200_000, b"[" * 60_000 + b"\n", b'{"a":1}\n', b"\0" * 99]
)
def test_a_file_that_is_no_ledger_is_refused(ledger: Ledger, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerRefused):
        Ledger.open(path)
    with pytest.raises(LedgerRefused):
        verify(path)


def test_another_ledgers_lines_are_refused(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    other = Ledger.create(tmp_path / "other", "budget")
    other.append("charge", {})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = (tmp_path / "other").read_bytes().splitlines(keepends=True)[1]
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerRefused, match="line 2: it does not follow"):
        Ledger.open(path)


def test_an_older_copy_shows_against_an_anchored_head(ledger: Ledger, path: Path) -> None:
    old = {file: file.read_bytes() for file in path.parent.iterdir()}
    anchor = ledger.append("charge", {"number": 5}).head
    assert Ledger.open(path).contains(anchor)
    for file, content in old.items():
        file.write_bytes(content)
    opened = Ledger.open(path)
    assert not opened.contains(anchor)
    with pytest.raises(LedgerRefused, match="older copy"):
        opened.require(anchor)
    # The same number with another hash: the older copy went on.
    opened.append("charge", {"number": 6})
    with pytest.raises(LedgerRefused, match="older copy"):
        opened.require(anchor)
    assert not opened.contains(Head(-1, opened.head.hash))


def test_a_copy_put_back_while_in_use_is_refused(ledger: Ledger, path: Path) -> None:
    old = {file: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith(".lock")}
    ledger.append("charge", {"number": 5})
    for file, content in old.items():
        file.write_bytes(content)
    with pytest.raises(LedgerRefused, match="replaced while in use"):
        ledger.append("charge", {"number": 6})
    # Also where the copy has grown past what was there.
    Ledger.open(path).append("charge", {"number": 7, "longer": "x" * 500})
    with pytest.raises(LedgerRefused, match="replaced while in use"):
        ledger.append("charge", {"number": 6})


def test_a_clock_that_jumps_back_does_no_harm(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Past(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Past":
            return cls(1971, 1, 1, tzinfo=tz)

    monkeypatch.setattr(chain, "datetime", Past)
    ledger.append("charge", {"number": 5})
    opened = Ledger.open(path)
    assert opened.entries[-1].time.startswith("1971")
    assert [entry.seq for entry in opened.entries] == list(range(7))


def test_two_objects_take_turns_and_read_each_other(ledger: Ledger, path: Path) -> None:
    other = Ledger.open(path)
    for number in range(5, 9):
        (ledger if number % 2 else other).append("charge", {"number": number})
    assert [entry.body["number"] for entry in Ledger.open(path).entries[1:]] == list(range(9))


def test_threads_do_not_interleave(path: Path) -> None:
    ledger = Ledger.create(path, "budget")
    threads = [
        threading.Thread(target=lambda: [ledger.append("charge", {}) for _ in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify(path).seq == 80


def test_processes_do_not_interleave(path: Path) -> None:
    Ledger.create(path, "budget")
    code = (
        "import sys; from pathlib import Path; from fedward.common.ledger import Ledger; "
        "l = Ledger.open(Path(sys.argv[1])); [l.append('charge', {'n': i}) for i in range(40)]"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    assert verify(path).seq == 120


def test_a_second_process_waits_and_is_then_refused_as_busy(ledger: Ledger, path: Path) -> None:
    with open(path.with_name("ledger.jsonl.lock"), "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LedgerRefused, match="busy"):
            Ledger.open(path, wait_seconds=0.05)
        threading.Timer(0.1, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        assert Ledger.open(path, wait_seconds=10).head == ledger.head


def test_a_check_and_its_append_can_be_one_step(ledger: Ledger, path: Path) -> None:
    with ledger:
        with pytest.raises(LedgerRefused, match="busy"):
            Ledger.open(path, wait_seconds=0.05)
        ledger.append("charge", {})
    assert Ledger.open(path, wait_seconds=0.05).head == ledger.head


@pytest.mark.parametrize("taken", [0, 1, 50])
def test_a_short_write_is_rolled_back(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:taken]) if taken else 0)
    with pytest.raises(LedgerRefused, match="disk is full"):
        ledger.append("charge", {"number": 5})
    monkeypatch.undo()
    assert path.read_bytes() == before
    ledger.append("charge", {"number": 6})
    assert Ledger.open(path).entries[-1].body["number"] == 6


def test_a_failed_sync_is_no_acknowledgement(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, calls = os.fsync, list[int]()

    def failing(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(LedgerRefused, match="Input/output error"):
        ledger.append("charge", {"number": 5})
    monkeypatch.undo()
    assert verify(path).seq == 5


def test_where_even_the_roll_back_fails_the_next_open_repairs(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def failing(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:30]))
    monkeypatch.setattr(os, "ftruncate", failing)
    with pytest.raises(LedgerRefused):
        ledger.append("charge", {"number": 5})
    monkeypatch.undo()
    ledger.append("charge", {"number": 6})
    assert kinds(Ledger.open(path))[-2:] == ["torn-tail", "charge"]


def test_a_disk_that_is_really_full_loses_nothing(path: Path) -> None:
    """A file size limit makes the kernel itself take part of a line."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from fedward.common.errors import LedgerRefused\n"
        "from fedward.common.ledger import Ledger, verify\n"
        "path = Path(sys.argv[1])\n"
        "ledger = Ledger.create(path, 'budget')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "done = 0\n"
        "try:\n"
        "    while True:\n"
        "        ledger.append('charge', {'number': done})\n"
        "        done += 1\n"
        "except LedgerRefused:\n"
        "    assert verify(path) == ledger.head and ledger.head.seq == done > 2\n"
        "    assert path.read_bytes().endswith(b'\\n')\n"
        "    print(done)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    assert Ledger.open(path).head.seq == int(found.stdout)


def test_what_is_not_json_or_too_long_is_refused_and_leaves_nothing(ledger: Ledger, path: Path) -> None:
    before = path.read_bytes()
    for body in (
        {"x": float("nan")},
        {"x": b""},
        {"x": "\ud800"},
        {"x": "y" * chain.MOST_LINE_BYTES},
        {"x": object()},
    ):
        with pytest.raises(LedgerRefused):
            ledger.append("charge", body)
    assert path.read_bytes() == before


json_bodies = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(json_bodies)
def test_a_body_comes_back_as_it_was(body: dict[str, Any]) -> None:
    try:
        entry = chain.link(None, "charge", body)
    except LedgerRefused:
        return  # a lone surrogate
    assert chain.unlink(entry.line(), None).body == body


def test_the_format_of_a_line_is_fixed() -> None:
    """Golden bytes: a change here is a change of the format."""
    entry = chain.Entry(7, "a" * 64, "2026-01-31T12:00:00.000Z", "charge", {"b": 1, "a": "é"}, "")
    rest = f'"kind":"charge","previous":"{"a" * 64}","seq":7,"time":"2026-01-31T12:00:00.000Z"' + "}"
    digest = hashlib.sha256(('{"body":{"a":"é","b":1},' + rest).encode()).hexdigest()
    line = ('{"body":{"a":"é","b":1},"hash":"' + digest + '",' + rest + "\n").encode()
    assert chain.unlink(line, Head(6, "a" * 64)) == dataclasses.replace(entry, hash=digest)
    assert dataclasses.replace(entry, hash=digest).line() == line


def test_a_line_has_one_spelling(ledger: Ledger, path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = json.dumps(json.loads(lines[2])).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerRefused, match="line 3: it is not canonical"):
        Ledger.open(path)


def test_a_killed_holder_leaves_no_lock(ledger: Ledger, path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fedward.common.ledger import Ledger\n"
        "with Ledger.open(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(LedgerRefused, match="busy"):
        Ledger.open(path, wait_seconds=0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert Ledger.open(path, wait_seconds=5).head == ledger.head


def test_reading_a_ledger_loads_neither_torch_nor_flwr() -> None:
    code = (
        "import sys, fedward.common.ledger, fedward.common.mechanisms; "
        "print(sorted({'torch', 'flwr', 'opacus'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_a_folder_that_may_not_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot be written"):
        Ledger.create(tmp_path / "missing" / "ledger.jsonl", "budget")
