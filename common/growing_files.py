"""Reading a file of lines that another process goes on writing."""

from pathlib import Path


def new_lines(path: Path, offset: int) -> tuple[list[bytes], int]:
    """Whole lines from byte `offset` on, and the offset behind them; of a missing file, none.

    A line that is not finished is left for the next time. A file that has become shorter was begun anew, and
    is read from its beginning.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) < offset:
                offset = 0
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)
