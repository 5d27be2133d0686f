"""A hash chain of JSON lines: each entry names the hash of the one before it.

    {"body":{...},"hash":"...","kind":"charge","previous":"...","seq":7,"time":"2026-01-31T12:00:00.000Z"}

Each line is canonical JSON, so it has one spelling; `hash` is SHA-256 over the line's object without
`hash`. The time informs a person only: order and content never depend on the clock.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple

from fedward.common.errors import LedgerRefused
from fedward.common.files import canonical_json, parse_canonical

MOST_LINE_BYTES = 1 << 16
BEFORE_GENESIS = "0" * 64
_FIELDS = {"body", "hash", "kind", "previous", "seq", "time"}


class Head(NamedTuple):
    """Where a chain ends: the last entry's number and hash. Kept elsewhere, it shows a cut or older chain."""

    seq: int
    hash: str


@dataclass(frozen=True)
class Entry:
    """One link.

    Attributes:
        seq: 0 for the genesis, then without gaps.
        previous: hash of the entry before; zeros for the genesis.
        time: ISO 8601 in UTC, for people.
        kind: what happened.
        body: what is known of it; JSON.
        hash: SHA-256 in hex of all of the above.
    """

    seq: int
    previous: str
    time: str
    kind: str
    body: Mapping[str, Any]
    hash: str

    @property
    def head(self) -> Head:
        """The chain's head as long as this entry is the last."""
        return Head(self.seq, self.hash)

    def line(self) -> bytes:
        """The entry as it stands in the file, with its newline."""
        return canonical_json({**self._unhashed(), "hash": self.hash}) + b"\n"

    def _unhashed(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "previous": self.previous,
            "time": self.time,
            "kind": self.kind,
            "body": dict(self.body),
        }


def link(previous: Head | None, kind: str, body: Mapping[str, Any]) -> Entry:
    """The entry that follows `previous`, or the genesis.

    Raises:
        LedgerRefused: the body is not JSON, or longer than a line may be.
    """
    seq, before = (previous.seq + 1, previous.hash) if previous else (0, BEFORE_GENESIS)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    draft = Entry(seq, before, now, kind, body, "")
    try:
        entry = Entry(seq, before, now, kind, body, _digest(draft))
        size = len(entry.line())
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerRefused(f"A {kind!r} entry must be plain JSON: {error}.") from error
    if size > MOST_LINE_BYTES:
        raise LedgerRefused(
            f"A {kind!r} entry of {size} bytes is over the {MOST_LINE_BYTES} that fit a line."
        )
    return entry


def unlink(line: bytes, previous: Head | None) -> Entry:
    """The entry that `line` holds, if it follows `previous`.

    Raises:
        ValueError: it is malformed, altered, or belongs elsewhere; the text says which.
    """
    if not line.endswith(b"\n") or len(line) > MOST_LINE_BYTES:
        raise ValueError("it is too long or has no end")
    entry = _parsed(line[:-1])
    seq, before = (previous.seq + 1, previous.hash) if previous else (0, BEFORE_GENESIS)
    if entry.hash != _digest(entry):
        raise ValueError("it was altered: its hash does not match")
    if (entry.seq, entry.previous) != (seq, before):
        raise ValueError("it does not follow the line before: lines are missing, or from another ledger")
    return entry


def read_chain(file: BinaryIO, previous: Head | None, name: str) -> Iterator[Entry]:
    """The entries from the file's position on; an unfinished last line is left out.

    Raises:
        LedgerRefused: a finished line does not verify.
    """
    while (line := file.readline(MOST_LINE_BYTES + 1)).endswith(b"\n") or len(line) > MOST_LINE_BYTES:
        try:
            entry = unlink(line, previous)
        except ValueError as error:
            number = previous.seq + 2 if previous else 1
            raise LedgerRefused(
                f"{name} does not verify at line {number}: {error}. Nothing is spent from it: put back its "
                "newest intact copy, then enter again what was spent since."
            ) from error
        previous = entry.head
        yield entry


def _parsed(data: bytes) -> Entry:
    value = parse_canonical(data)
    if not isinstance(value, dict) or set(value) != _FIELDS or type(value["seq"]) is not int:
        raise ValueError("it is no ledger entry")
    texts = ("previous", "time", "kind", "hash")
    if not all(isinstance(value[field], str) for field in texts) or not isinstance(value["body"], dict):
        raise ValueError("it is no ledger entry")
    return Entry(**value)


def _digest(entry: Entry) -> str:
    return hashlib.sha256(canonical_json(entry._unhashed())).hexdigest()
