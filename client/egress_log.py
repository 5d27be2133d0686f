"""The log of what left: a hash-chained ledger, and beside it one file of counts that bounds it.

A hostile coordinator may ask for what is refused, or for a stored reply, again and again. So a message of
which the log holds eight copies, and a refusal under whose name it holds five hundred lines, is counted in
``again.json``, synced before the message leaves as a line would be:

    {"17": [5, 1200], "RequestRefused": [2, 140]}     of what: how often, and how many bytes altogether

The number is that of the first of the equal entries. Whenever a count reaches a power of two the chain says
so, and a file that says less was deleted or turned back:

    counted   {of, times, bytes}
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedward.common.chain import Entry
from fedward.common.errors import LedgerRefused
from fedward.common.files import canonical_json, read_bounded, refused_output, write_atomically
from fedward.common.ledger import Ledger

LOG = Path("egress") / "ledger.jsonl"  # in a hospital's state folder
COUNTS = "again.json"  # beside it
LOG_HEAD = "egress"  # under which a charge keeps where the log ended: {entry, hash}
PURPOSE = "egress"
COPIES_WRITTEN = 8
REFUSALS_WRITTEN = 500  # under one name; the names are those of `fedward.common.errors`
HELD = "held"
_COUNTED = "counted"
_MOST_BYTES = 1 << 24

Counts = dict[str, tuple[int, int]]  # an entry's number or a refusal's name -> times, bytes


class EgressLog:
    """Writes what leaves, or counts it; safe between processes and threads like its ledger."""

    def __init__(self, ledger: Ledger) -> None:
        """Write to `ledger`."""
        self.ledger = ledger
        self._read = 0
        self._copies: Counter[bytes] = Counter()
        self._first: dict[bytes, int] = {}
        self._names: Counter[str] = Counter()

    @classmethod
    def open(cls, path: Path) -> "EgressLog":
        """The log at `path`, which is started in a state folder that exists.

        Raises:
            LedgerRefused: busy, it does not verify, or it is a log of something else.
            OutputRefused: it cannot be written.
        """
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise refused_output(path.parent, error) from error
        ledger = _opened(path)
        if ledger.purpose != PURPOSE:
            raise LedgerRefused(f"{path} is no record of what left: put back its newest copy.")
        return cls(ledger)

    def write(self, kind: str, body: Mapping[str, Any]) -> None:
        """Enter a message, synced, as a line or as a count of one.

        Raises:
            LedgerRefused, OutputRefused: it could not be entered, so it must not leave.
        """
        with self.ledger:
            self._catch_up()
            of = self._counted_as(kind, body)
            if of:
                self._count(of, int(body.get("bytes", 0)))
            else:
                self.ledger.append(kind, body)

    def _catch_up(self) -> None:
        for entry in self.ledger.entries[self._read :]:
            key = _key(entry.kind, entry.body)
            self._copies[key] += 1
            self._first.setdefault(key, entry.seq)
            self._names[_name(entry.kind, entry.body)] += 1
        self._read = len(self.ledger.entries)

    def _counted_as(self, kind: str, body: Mapping[str, Any]) -> str:
        key, name = _key(kind, body), _name(kind, body)
        if self._copies[key] >= COPIES_WRITTEN:
            return str(self._first[key])
        return name if name and self._names[name] >= REFUSALS_WRITTEN else ""

    def _count(self, of: str, size: int) -> None:
        found = counts(self.ledger)
        times, total = found.get(of, (0, 0))
        found[of] = times, total = times + 1, total + size
        write_atomically(_path(self.ledger), canonical_json(found), 0o600)
        if times & (times - 1) == 0:
            self.ledger.append(_COUNTED, {"of": of, "times": times, "bytes": total})


class LogEnd:
    """Where a state folder's log ends, which each charge keeps, so that a deleted or cut log shows."""

    def __init__(self, folder: Path) -> None:
        """Look in `folder`, whether or not it has a log yet."""
        self._path = folder / LOG
        self._ledger: Ledger | None = None

    def noted(self) -> dict[str, Any]:
        """For a charge: ``{LOG_HEAD: {entry, hash}}``, or nothing where nothing has left yet.

        Raises:
            LedgerRefused: busy, or the log does not verify.
        """
        if self._ledger is None and not self._path.exists():
            return {}
        self._ledger = self._ledger or Ledger.open(self._path)
        with self._ledger as ledger:
            return {LOG_HEAD: {"entry": ledger.head.seq, "hash": ledger.head.hash}}


def counts(ledger: Ledger) -> Counts:
    """What was counted and not written, by the number of an entry or the name of a refusal.

    Raises:
        LedgerRefused: the file of counts is damaged, or lacks what the log says was counted.
    """
    path = _path(ledger)
    found = _counts_in(path) if path.exists() else {}
    for entry in _noted(ledger):
        if found.get(entry.body["of"], (0, 0)) < (entry.body["times"], entry.body["bytes"]):
            raise LedgerRefused(
                f"{path} lacks messages that left: entry {entry.seq} of the log names {entry.body['times']} "
                "repeated ones that are not counted there. It was deleted, or is an older copy: put back the "
                "newest."
            )
    return found


def _opened(path: Path) -> Ledger:
    if not path.exists():
        try:
            return Ledger.create(path, PURPOSE)
        except LedgerRefused:
            # Another process was first; if it was not that, opening says what is wrong.
            return Ledger.open(path)
    return Ledger.open(path)


def _noted(ledger: Ledger) -> list[Entry]:
    """The last note of each count."""
    return list({e.body["of"]: e for e in ledger.entries if e.kind == _COUNTED}.values())


def _counts_in(path: Path) -> Counts:
    data = read_bounded(path, _MOST_BYTES, refusal=LedgerRefused)
    try:
        return {str(of): (int(times), int(size)) for of, (times, size) in json.loads(data).items()}
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise LedgerRefused(f"{path} is damaged: put back its newest copy.") from error


def _path(ledger: Ledger) -> Path:
    return ledger.path.with_name(COUNTS)


def _key(kind: str, body: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(canonical_json([kind, dict(body)])).digest()


def _name(kind: str, body: Mapping[str, Any]) -> str:
    """Under which a message is counted once there are many: a refusal's name; nothing for a reply."""
    return HELD if kind == HELD else str(body.get("about", {}).get("refusal", ""))
