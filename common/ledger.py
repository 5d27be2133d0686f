"""An append-only, hash-chained, locked and synced log: the one kind behind budget and audit.

Promises, and how each is kept:

- An entry that `append` returned is on the disk: one write at the file's end, then fsync.
- A crash at any instant leaves a chain that opens: an unfinished last line that was never acknowledged
  is cut off and a ``torn-tail`` entry says so. Which line was acknowledged stands in a small file
  beside the ledger (``NAME.head``), written after the sync, so that a *lost* tail is told from a *torn* one.
- A write that fails (disk full) is rolled back to the length before and raises.
- Two processes take turns by a lock beside the file, and each reads what the other added.
- A flipped byte, a missing line, a cut tail or another ledger's line is refused by its line number. A whole
  older copy of both files verifies, of course: that shows only against a head kept elsewhere, by `require`.

No torch, no flwr: a verifier starts in milliseconds.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedward.common.chain import Entry, Head, link, read_chain
from fedward.common.errors import LedgerRefused
from fedward.common.files import read_bounded, refused_output, sync_folder, write_atomically
from fedward.common.locks import FileLock

SCHEMA = 1
_ACKNOWLEDGED = re.compile(rb"([0-9]{20}) ([0-9a-f]{64})\n")


class Ledger:
    """One ledger file. ``with ledger:`` holds its lock over several calls, so that a check and the append
    that rests on it are one step; every call takes the lock by itself as well."""

    def __init__(self, path: Path, wait_seconds: float = 30.0) -> None:
        """Use `open` or `create`."""
        self.path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"), wait_seconds)
        self._descriptor = -1
        self._entries: list[Entry] = []
        self._size = 0

    @classmethod
    def create(cls, path: Path, purpose: str, wait_seconds: float = 30.0) -> "Ledger":
        """Start a ledger at `path`, whose folder must exist.

        Raises:
            LedgerRefused: there is one already, or one was there.
            OutputRefused: it cannot be written.
        """
        ledger = cls(path, wait_seconds)
        with ledger._lock:
            if path.exists() or _head_path(path).exists():
                raise LedgerRefused(
                    f"There is, or was, a ledger at {path} already: open it, or name another."
                )
            genesis = link(
                None, "genesis", {"ledger": secrets.token_hex(16), "purpose": purpose, "schema": SCHEMA}
            )
            write_atomically(path, genesis.line(), 0o600)
            write_atomically(_head_path(path), _acknowledgement(genesis.head), 0o600)
        return cls.open(path, wait_seconds)

    @classmethod
    def open(cls, path: Path, wait_seconds: float = 30.0) -> "Ledger":
        """Read and verify the whole of a ledger, and repair a tail that a crash left unfinished.

        Raises:
            LedgerRefused: missing, busy, or it does not verify; the sentence names the line.
        """
        ledger = cls(path, wait_seconds)
        with ledger:
            # Its folder too: who created it may have died before this name was on the disk.
            sync_folder(path.parent)
        return ledger

    def __enter__(self) -> "Ledger":
        """Take the lock and read what others have appended.

        Raises:
            LedgerRefused: busy, missing, or what is there does not continue what was read before.
        """
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._lock)
            if self._lock.depth == 1:
                self._descriptor = self._opened()
                undo.callback(os.close, self._descriptor)
                self._refresh()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        if self._lock.depth == 1:
            os.close(self._descriptor)
        self._lock.__exit__(kind, error, trace)

    @property
    def head(self) -> Head:
        """The last entry's number and hash, as far as this object has read."""
        return self._entries[-1].head

    @property
    def entries(self) -> Sequence[Entry]:
        """All entries that this object has read, in order; not to be changed."""
        return self._entries

    @property
    def id(self) -> str:
        """The ledger's random name, from its genesis."""
        return str(self._entries[0].body["ledger"])

    @property
    def purpose(self) -> str:
        """What the ledger was created for."""
        return str(self._entries[0].body["purpose"])

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Chain an entry; once this returns it survives any crash.

        Raises:
            LedgerRefused: busy, damaged, the body is not JSON or too long, or the disk does not take it;
                then nothing was appended, and what the entry stands for must not happen.
        """
        with self:
            entry = link(self.head, kind, body)
            self._write(entry.line())
            self._take(entry)
            self._acknowledge()
        return entry

    def contains(self, head: Head) -> bool:
        """Whether `head`, kept elsewhere, is an entry of this chain."""
        return 0 <= head.seq < len(self._entries) and self._entries[head.seq].hash == head.hash

    def require(self, head: Head) -> None:
        """Accept a head that was anchored elsewhere.

        Raises:
            LedgerRefused: this chain does not contain it: it is an older copy, or another ledger.
        """
        if not self.contains(head):
            raise LedgerRefused(
                f"{self.path} ends at entry {self.head.seq} and does not contain the anchored entry "
                f"{head.seq} ({head.hash[:12]}): it is an older copy or another ledger. "
                "Put back the newest copy, or enter again what was spent since."
            )

    def _opened(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise LedgerRefused(f"There is no ledger at {self.path}: put back its newest copy.") from error
        except OSError as error:
            raise refused_output(self.path, error) from error

    def _refresh(self) -> None:
        size = os.fstat(self._descriptor).st_size
        self._refuse_if_replaced(size)
        if self._entries and size == self._size:
            return
        with open(os.dup(self._descriptor), "rb") as file:
            file.seek(self._size)
            for entry in read_chain(file, self._entries[-1].head if self._entries else None, str(self.path)):
                self._take(entry)
        if not self._entries:
            raise LedgerRefused(f"{self.path} has no first line: it is no ledger. Put back its newest copy.")
        acknowledged = _acknowledged(self.path)
        _refuse_if_cut(self.path, self._entries, acknowledged)
        if size > self._size:
            self._repair(size, acknowledged)
        # What another process wrote may not be on the disk yet if it died before its own sync.
        os.fsync(self._descriptor)
        self._acknowledge()

    def _refuse_if_replaced(self, size: int) -> None:
        """The last entry must stand where this process saw it: its hash stands for all before it."""
        if not self._entries:
            return
        line = self._entries[-1].line()
        if size < self._size or os.pread(self._descriptor, len(line), self._size - len(line)) != line:
            raise LedgerRefused(
                f"{self.path} was replaced while in use: entry {self.head.seq} is gone. "
                "Put back the newest copy."
            )

    def _repair(self, size: int, acknowledged: Head | None) -> None:
        """Cut off the unfinished line after the last entry, if it is certain that nobody was told of it."""
        torn = os.pread(self._descriptor, size - self._size, self._size)
        if acknowledged is None:
            raise LedgerRefused(
                f"{self.path} ends in an unfinished line {len(self._entries) + 1}, and "
                f"{_head_path(self.path).name}, which tells if it was acknowledged, is missing or damaged. "
                "Put back the newest copy of both."
            )
        os.ftruncate(self._descriptor, self._size)
        os.fsync(self._descriptor)
        self.append("torn-tail", {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()})

    def _write(self, line: bytes) -> None:
        try:
            if (count := os.write(self._descriptor, line)) != len(line):
                raise OSError(f"only {count} of {len(line)} bytes were taken: the disk is full")
            os.fsync(self._descriptor)
        except BaseException as error:
            self._roll_back()
            if not isinstance(error, OSError):
                raise
            raise LedgerRefused(
                f"{self.path} could not be written ({error.strerror or error}); nothing was entered, "
                "so nothing may start: make room and ask again."
            ) from error

    def _roll_back(self) -> None:
        # Where even this fails, the file is longer than what was read, and the next entering repairs it.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self._size)
            os.fsync(self._descriptor)

    def _take(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._size += len(entry.line())

    def _acknowledge(self) -> None:
        """Note the head beside the ledger. No sync: after a power cut it may be older, never newer."""
        try:
            descriptor = os.open(_head_path(self.path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, _acknowledgement(self.head), 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise refused_output(_head_path(self.path), error) from error


def verify(path: Path) -> Head:
    """Check a ledger from its first line to its last without changing or locking it.

    An unfinished last line that nobody was told of is not an error: another process may be writing it.

    Returns:
        Its head, to be compared with one that was kept elsewhere.

    Raises:
        LedgerRefused: missing, or it does not verify; the sentence names the line.
    """
    # The acknowledged head is read first: whatever it names was in the file by then.
    acknowledged = _acknowledged(path)
    try:
        with open(path, "rb") as file:
            entries = list(read_chain(file, None, str(path)))
    except OSError as error:
        raise LedgerRefused(f"{path} cannot be read: {error.strerror or error}.") from error
    if not entries:
        raise LedgerRefused(f"{path} has no first line: it is no ledger.")
    _refuse_if_cut(path, entries, acknowledged)
    return entries[-1].head


def _refuse_if_cut(path: Path, entries: Sequence[Entry], acknowledged: Head | None) -> None:
    if acknowledged is None:
        return
    if acknowledged.seq >= len(entries) or entries[acknowledged.seq].hash != acknowledged.hash:
        raise LedgerRefused(
            f"{path} lacks line {acknowledged.seq + 1}, which was acknowledged: its tail was cut, "
            "or it is another ledger. Put back its newest copy."
        )


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _acknowledgement(head: Head) -> bytes:
    return f"{head.seq:020d} {head.hash}\n".encode()


def _acknowledged(path: Path) -> Head | None:
    """The head noted beside the ledger; None where a power cut or a person left nothing readable."""
    try:
        match = _ACKNOWLEDGED.fullmatch(read_bounded(_head_path(path), 128, refusal=LedgerRefused))
    except LedgerRefused:
        return None
    return Head(int(match[1]), match[2].decode()) if match else None
