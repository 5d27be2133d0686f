"""What every study shares: raw rows that outlive an interruption, and targets beside figures.

A study's rows stand in ``OUT/rows.jsonl``, one JSON object a line with its ``key``. Run again, a study
measures only the keys that are missing, so it goes on where it was cut off.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fedward.common.errors import CheckpointRefused, Refusal
from fedward.common.files import canonical_json, refused_output
from fedward.common.printing import printable

Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A figure beside what it was to reach; `at_least` says on which side it lies."""

    name: str
    figure: float
    target: float
    at_least: bool

    @property
    def is_met(self) -> bool:
        """Whether the figure reaches the target."""
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def to_dict(self) -> Row:
        """Plain JSON types."""
        bound = "at least" if self.at_least else "at most"
        return {"name": self.name, "figure": self.figure, bound: self.target, "met": self.is_met}


def measured(
    out: Path,
    keys: Iterable[Row],
    measure: Callable[[Row], Row],
    say: Callable[[str], None],
    is_kept: Callable[[Row], bool] = lambda _: True,
) -> list[Row]:
    """A row for each key, from ``OUT/rows.jsonl`` where it is there already, else measured and appended.

    A row that is not kept is returned but not written, so that the next run measures its key again.

    Raises:
        CheckpointRefused: the file of rows is damaged before its last line.
        OutputRefused: the folder cannot be written.
    """
    path = out / "rows.jsonl"
    known = _opened(path)
    rows = []
    for key in keys:
        name = canonical_json(key)
        if name not in known:
            say(f"measuring {name.decode()}")
            known[name] = {"key": key, **measure(key)}
            if is_kept(known[name]):
                _append(path, known[name])
        rows.append(known[name])
    return rows


def _opened(path: Path) -> dict[bytes, Row]:
    """The rows that are there; the folder is made, and a row that a crash cut off is taken away."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))  # never rewritten: the rows before it took hours
    except OSError as error:
        raise refused_output(path, error) from error
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        return {canonical_json(row["key"]): row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointRefused(f"{path} is damaged; name another --out folder.") from error


def _append(path: Path, row: Row) -> None:
    try:
        with path.open("ab") as file:
            file.write(canonical_json(row) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise refused_output(path, error) from error


def run_study(main: Callable[..., None]) -> None:
    """Run a study's command line; a refusal is one named sentence and exit code 1, as `fedward` gives it."""
    try:
        typer.run(main)
    except Refusal as refusal:
        sys.stderr.write(printable(f"{refusal.name}: {refusal}") + "\n")
        sys.exit(1)


def conclude(study: str, rows: list[Row], targets: list[Target], as_json: bool, **more: Any) -> int:
    """Print the study's one JSON object, or a line a target; returns the exit code: 1 where one is missed."""
    passed = all(target.is_met for target in targets)
    if as_json:
        result = {
            "study": study,
            "rows": rows,
            "targets": [t.to_dict() for t in targets],
            **more,
            "passed": passed,
        }
        json.dump(result, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        for target in targets:
            bound = ">=" if target.at_least else "<="
            mark = "met" if target.is_met else "MISSED"
            sys.stdout.write(f"{target.name}: {target.figure:.4g} ({bound} {target.target:g}) {mark}\n")
    return 0 if passed else 1
