"""Message numbers: what was sent is never sent under an old number, what came is never taken twice.

A sender's numbers rise by the clock, in milliseconds, or by one where the clock stands still or goes back. So
a standby that took over a copy of the state folder, which is a little older, goes on above what was used.

A receiver remembers, for each sender's key, the last `WINDOW` numbers that it took, each with its message's
digest (after the sliding window of RFC 4303, section 3.4.3), synced before the message is handed on: a
crash never makes it forget one. Numbers are kept by key, so a sender that lost its own begins again under a
new key.
"""

import re
from enum import Enum
from pathlib import Path

from fedward.common.digests import is_digest
from fedward.common.errors import EnvelopeReplayed, LedgerRefused
from fedward.common.files import (
    canonical_json,
    make_folder,
    parse_canonical,
    read_bounded,
    write_atomically,
)
from fedward.common.locks import FileLock

WINDOW = 64
HIGHEST_NUMBER = (1 << 53) - 1  # what every JSON reader keeps exactly
_SCHEMA = "fedward.numbers/1"
_LIMIT_BYTES = 1 << 14


class Arrival(Enum):
    """How a message stands to those that came before from the same key."""

    FRESH = "its number is above all before"
    LATE = "it was not seen before, but a later one was"
    AGAIN = "the very same message came before"


IN_ORDER = frozenset({Arrival.FRESH})
ANY_ORDER = frozenset({Arrival.FRESH, Arrival.LATE})


class Numbers:
    """What a receiver has taken, in one folder, one file a sender's key."""

    def __init__(self, folder: Path) -> None:
        """Keep numbers in `folder`.

        Raises:
            OutputRefused: it cannot be made.
        """
        make_folder(folder, 0o700)
        self._folder = folder
        self._lock = FileLock(folder / "numbers.lock")

    def take(self, keyid: str, number: int, digest: str, accepted: frozenset[Arrival] = IN_ORDER) -> Arrival:
        """Take a message, or refuse it and change nothing.

        Args:
            keyid: of the sender's key, whose signature was verified.
            number: the message's.
            digest: SHA-256 of what was signed, in hex.
            accepted: how it may arrive.

        Raises:
            EnvelopeReplayed: it arrives in another way, under another message's number, or below the window.
            LedgerRefused: the sender's file is damaged, or busy.
            OutputRefused: it cannot be written; then the message must not be handed on.
        """
        with self._lock:
            taken = self._read(keyid)
            arrival = _arrival(taken, number, digest)
            if arrival not in accepted:
                raise EnvelopeReplayed(_NOT_ACCEPTED[arrival].format(number))
            if arrival is not Arrival.AGAIN:
                self._write(keyid, {**taken, number: digest})
        return arrival

    def _path(self, keyid: str) -> Path:
        if not is_digest(keyid):
            raise ValueError("a key id has 64 hexadecimal digits")
        return self._folder / f"{keyid}.json"

    def _read(self, keyid: str) -> dict[int, str]:
        path = self._path(keyid)
        if not path.exists():
            return {}
        data = read_bounded(path, _LIMIT_BYTES, refusal=LedgerRefused)
        try:
            document = parse_canonical(data)
            taken = dict(document["taken"])
            if document["schema"] == _SCHEMA and taken and all(map(_is_taken, taken.items())):
                return taken
        except (KeyError, TypeError, ValueError):
            pass
        raise LedgerRefused(
            f"{path.name}, which says what messages were taken, is damaged: put back its newest copy, or "
            "give that sender a new key."
        )

    def _write(self, keyid: str, taken: dict[int, str]) -> None:
        newest = sorted(taken.items())[-WINDOW:]
        document = {"schema": _SCHEMA, "taken": [list(one) for one in newest]}
        write_atomically(self._path(keyid), canonical_json(document), 0o600)


_NOT_ACCEPTED = {
    Arrival.FRESH: "Message {} is new, where only one that came before is expected.",
    Arrival.LATE: "Message {} came after a later one: its sender must send it anew.",
    Arrival.AGAIN: "Message {} came before: it is played again. Its sender must send it anew.",
}


def _arrival(taken: dict[int, str], number: int, digest: str) -> Arrival:
    if number in taken:
        if taken[number] != digest:
            raise EnvelopeReplayed(
                f"Message {number} came before with other content: its sender must send it anew; if this "
                "comes again, two machines use one key."
            )
        return Arrival.AGAIN
    if not taken or number > max(taken):
        return Arrival.FRESH
    if len(taken) >= WINDOW and number < min(taken):
        raise EnvelopeReplayed(
            f"Message {number} is older than the last {WINDOW}, so whether it came before cannot be told: "
            "its sender must send it anew."
        )
    return Arrival.LATE


def _is_taken(one: tuple[object, object]) -> bool:
    number, digest = one
    return type(number) is int and is_digest(digest)


class NextNumber:
    """A sender's own numbers, kept in one file; two processes never get the same one."""

    def __init__(self, path: Path) -> None:
        """Keep the last number at `path`, in a folder that exists."""
        self._path = path
        self._lock = FileLock(path.with_suffix(".lock"))

    def take(self, now: float) -> int:
        """The next number, synced before it is used; after a crash one may be left out, never used twice.

        Args:
            now: unix seconds.

        Raises:
            LedgerRefused: the file is damaged or busy, or no number is left.
            OutputRefused: it cannot be written.
        """
        with self._lock:
            number = max(self._last() + 1, int(now * 1000))
            if number > HIGHEST_NUMBER:
                raise LedgerRefused(
                    f"The clock or {self._path.name} is far in the future: set the clock, then make new keys."
                )
            write_atomically(self._path, b"%d\n" % number, 0o600)
        return number

    def _last(self) -> int:
        if not self._path.exists():
            return 0
        text = read_bounded(self._path, 64, refusal=LedgerRefused)
        if not re.fullmatch(rb"[0-9]{1,16}\n", text):
            raise LedgerRefused(
                f"{self._path.name} is damaged: check the clock, then remove the file; numbers go on by the "
                "clock."
            )
        return int(text)
