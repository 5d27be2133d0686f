"""The logs of a supervisor's programs, as `logs` shows them: the last lines of each, and what is new."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fedward.common.errors import UnknownName
from fedward.common.supervision import LOGS

_CHUNK_BYTES = 64 << 10
_LOOK_SECONDS = 0.3


def chosen(folder: Path, names: Sequence[str]) -> list[Path]:
    """The logs of these programs, by default of all.

    Raises:
        UnknownName: there is no such log; the sentence lists those there are.
    """
    found = {path.stem: path for path in sorted((folder / LOGS).glob("*.log"))}
    unknown = [name for name in names if name not in found]
    if unknown or not found:
        raise UnknownName(
            f"There is no log of {', '.join(unknown) or 'anything'} in {folder / LOGS}; there are "
            f"{', '.join(found) or 'none'}."
        )
    return [found[name] for name in (names or found)]


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a log, of which at most the end of the file is read."""
    if count == 0:
        return []
    with path.open("rb") as file:
        start = file.seek(0, 2)
        data = b""
        while start > 0 and data.count(b"\n") <= count:
            step = min(start, _CHUNK_BYTES)
            start -= step
            file.seek(start)
            data = file.read(step) + data
    return data.decode(errors="replace").splitlines()[-count:]


def follow(paths: Sequence[Path], say: Callable[[str, str], None]) -> None:
    """Tell of each new line with its log's name, until Ctrl-C; a log that began anew is read anew."""
    places = {path: path.stat().st_size for path in paths}
    while True:
        for path in paths:
            size = path.stat().st_size if path.exists() else 0
            start = 0 if size < places[path] else places[path]
            if size > start:
                with path.open("rb") as file:
                    file.seek(start)
                    data = file.read(size - start)
                whole = data.rpartition(b"\n")[0]
                places[path] = start + (len(whole) + 1 if whole else 0)
                for line in whole.decode(errors="replace").splitlines():
                    say(path.stem, line)
        time.sleep(_LOOK_SECONDS)
