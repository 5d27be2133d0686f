"""kill -9 in the middle of a charged round: what a crash can do to a hospital's budget.

Each run forks a child that answers one round through the hospital's own ledger, key and reply stores, and
dies at a random point: in half of the runs the parent kills it after a random time, in the other half it
kills itself at a random executed line of Fedward's code, which reaches instants that no timer hits. Then
the parent asks for the round again, twice, and compares. All runs share one ledger, so that damage done by
one would be met by the next.

The work itself is a stand-in (noise from the round's key): the promises are about what surrounds it.

    python -m fedward.simulations.studies.ledger_crash --runs 200 --json [--seed S] [--out FOLDER]
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, BinaryIO

import numpy as np
import typer

from fedward.client.registry import Registry
from fedward.client.replies import ReplyStore
from fedward.client.round_keys import RoundKeys
from fedward.common.errors import OutputRefused, Refusal
from fedward.common.files import canonical_json, make_folder, write_atomically
from fedward.common.ledger import verify
from fedward.common.privacy import Mechanism
from fedward.simulations.studies.rows import run_study

STUDY, DATASET, DELTA = "ledger-crash", "phantom", 1e-5
STEP = Mechanism(noise_multiplier=50.0, sample_rate=0.1, steps=3)
REPLY_VALUES = 20_000
_ROOM = str(Path(__file__).resolve().parents[2])

Row = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """A hospital's state folder, with what an outsider has seen of it."""

    folder: Path

    def registry(self) -> Registry:
        """The budgets, opened anew as after a restart."""
        return Registry(self.folder / "budget")

    def prepare(self) -> None:
        """Import the data set; a second call finds it."""
        registry = self.registry()
        images = np.arange(64, dtype=np.uint8)[:, None].repeat(16, axis=1)
        registry.import_dataset(DATASET, registry.identity.digests(images), total_epsilon=10.0, delta=DELTA)

    def answer(self, server_round: int, registry: Registry) -> bytes:
        """One charged round in a hospital's order: key, charge, work, store, leave, destroy the key."""
        content = hashlib.sha256(f"round {server_round}".encode()).hexdigest()
        replies, keys = ReplyStore(self.folder / "replies"), RoundKeys(self.folder / "keys")
        reply = replies.get(STUDY, server_round, content)
        if reply is None:
            budget = registry.budget(DATASET)
            key = keys.open(content, budget.find(STUDY, server_round) is not None)
            extra = {"key": key.key_digest, "snapshot": budget.state.images_sha256}
            budget.charge(STUDY, server_round, content, STEP, extra=extra)
            self.note("started", str(server_round))
            work = key.derive("noise").normal(REPLY_VALUES).astype(np.float32).tobytes()
            reply = replies.store(STUDY, server_round, content, work)
        self.note("left", f"{server_round} {hashlib.sha256(reply).hexdigest()}")
        keys.destroy(content)
        return reply

    def note(self, what: str, line: str) -> None:
        """An outsider's memory: one write, which outlives the process whatever comes."""
        descriptor = os.open(self.folder / what, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    def noted(self, what: str) -> list[str]:
        """What `note` kept."""
        path = self.folder / what
        return path.read_text().splitlines() if path.exists() else []


def run(site: Site, index: int, seed: int, lines: int, seconds: float) -> Row:
    """Crash round `index` once, ask for it again twice, and say what was found."""
    rng = random.Random(f"{seed} {index}")  # noqa: S311  # chooses where to crash, not a secret
    registry = site.registry()
    at_line = rng.randrange(1, lines + 1) if index % 2 == 0 else None
    at_time = rng.uniform(0.0, seconds) if at_line is None else None
    killed = _crash(lambda: site.answer(index, registry), at_line, at_time)
    row: Row = {
        "run": index,
        "at_line": at_line,
        "at_seconds": at_time,
        "killed": killed,
        "charged_at_crash": _charged(site, index),
        "left_at_crash": any(line.startswith(f"{index} ") for line in site.noted("left")),
    }
    return {**row, **_judged(site, index)}


def _judged(site: Site, index: int) -> Row:
    """The promises, one by one, after a restart."""
    try:
        registry = site.registry()
        budget = registry.budget(DATASET)
        started = {int(line) for line in site.noted("started")}
        charged = {charge.server_round for charge in budget.state.charges.values()}
        again, and_again = site.answer(index, registry), site.answer(index, site.registry())
        budget = site.registry().budget(DATASET)
        left = {line.split()[1] for line in site.noted("left") if line.startswith(f"{index} ")}
        return {
            "refusal": None,
            "verifies": verify(budget.ledger.path) == budget.ledger.head,
            "started_uncharged": len(started - charged),
            "steps_spent": sum(mechanism.steps for mechanism in budget.mechanisms()),
            "steps_charged_once": STEP.steps * (index + 1),
            "replies": len(left | {hashlib.sha256(reply).hexdigest() for reply in (again, and_again)}),
        }
    except Refusal as refusal:
        return {"refusal": f"{refusal.name}: {refusal}"}


def _charged(site: Site, index: int) -> bool:
    """Whether the ledger's bytes held the charge when the process died, before anything is repaired."""
    return any(f'"round":{index},' in path.read_text() for path in site.folder.glob("budget/*/ledger.jsonl"))


def _crash(work: Callable[[], object], at_line: int | None, after_seconds: float | None) -> bool:
    """Work in a child and kill it there; whether it died before it was done."""
    child, begun = _forked(work, at_line)
    begun.read(1)
    if after_seconds is not None:
        time.sleep(after_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # the child forked above; not yet waited for, so the id is its own
    begun.close()
    return _ended(child)


def _lived(site: Site, registry: Registry, index: int) -> float:
    """Seconds that a child which is let live works."""
    child, begun = _forked(lambda: site.answer(index, registry), None)
    begun.read(1)
    start = time.perf_counter()
    begun.read(1)  # nothing more comes: this returns when the child is gone
    seconds = time.perf_counter() - start
    begun.close()
    _ended(child)
    return seconds


def _forked(work: Callable[[], object], at_line: int | None) -> tuple[int, BinaryIO]:
    """A child that works, and what gives one byte when it begins, so that no clock counts the fork."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(work, at_line, writer)
    os.close(writer)
    return child, open(reader, "rb", buffering=0)


def _ended(child: int) -> bool:
    """Wait for the child; whether it was killed."""
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError("the child failed by itself; its error stands above")
    return os.WIFSIGNALED(status)


def _child(work: Callable[[], object], at_line: int | None, begun: int) -> None:
    code = 1
    try:
        os.write(begun, b".")
        with _killing_itself(at_line):
            work()
        code = 0
    except BaseException as error:  # the child must not run on into the parent's code
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


@contextlib.contextmanager
def _killing_itself(at_line: int | None) -> Iterator[list[int]]:
    """Count the lines of Fedward's code that run; at number `at_line`, kill -9 this process."""
    count = [0]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(_ROOM):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    if at_line is not None:
        sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(None)


def _measured() -> tuple[int, float]:
    """How many lines and seconds an uninterrupted round takes, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        site.prepare()
        registry = site.registry()
        site.answer(0, registry)
        with _killing_itself(-1) as lines:
            site.answer(1, registry)
        return lines[0], statistics.median(_lived(site, registry, 2 + index) for index in range(7))


def figures(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """The study's figures, each beside its target."""
    sound = [row for row in rows if row["refusal"] is None]
    exact = {
        "runs_that_verify": (sum(row["verifies"] for row in sound), len(rows)),
        "started_uncharged": (sum(row["started_uncharged"] for row in sound), 0),
        "runs_charged_exactly_once": (
            sum(row["steps_spent"] == row["steps_charged_once"] for row in sound),
            len(rows),
        ),
        "runs_with_one_reply": (sum(row["replies"] == 1 for row in sound), len(rows)),
        "refusals": (len(rows) - len(sound), 0),
    }
    found = {
        name: {"value": value, "target": goal, "met": value == goal} for name, (value, goal) in exact.items()
    }
    # Without kills every other target would be met for nothing.
    killed, least = sum(row["killed"] for row in rows), (len(rows) + 1) // 2
    return {**found, "runs_killed": {"value": killed, "target": f">= {least}", "met": killed >= least}}


def crash(runs: int, seed: int, folder: Path) -> Row:
    """Run the study in `folder`, from where it was cut off."""
    kept = folder / "rows.json"
    site = Site(folder / "site")
    site.folder.mkdir(parents=True, exist_ok=True)
    site.prepare()
    rows: list[Row] = json.loads(kept.read_bytes()) if kept.exists() else []
    lines, seconds = _measured()
    for index in range(len(rows), runs):
        rows.append(run(site, index, seed, lines, seconds))
        write_atomically(kept, canonical_json(rows))
    rows = rows[:runs]
    found = figures(rows)
    return {
        "schema": 1,
        "study": "ledger_crash",
        "settings": {"runs": runs, "seed": seed, "round_lines": lines, "round_seconds": seconds},
        "figures": found,
        "killed_after_charge": sum(row["killed"] and row["charged_at_crash"] for row in rows),
        "killed_after_reply_left": sum(row["killed"] and row["left_at_crash"] for row in rows),
        "passed": all(figure["met"] for figure in found.values()),
        "rows": rows,
    }


def _main(
    runs: Annotated[int, typer.Option(min=1, help="How many rounds to crash.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the points of the crashes.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Keep the state here, and go on from it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Kill a hospital's round at random points and check its ledger, its charges and its replies."""
    with tempfile.TemporaryDirectory() as spare:
        result = crash(runs, seed, _folder(out or Path(spare)))
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for name, figure in result["figures"].items():
            typer.echo(f"{name}: {figure['value']} (target {figure['target']})")
    raise typer.Exit(0 if result["passed"] else 1)


def _folder(path: Path) -> Path:
    make_folder(path)
    if any(path.iterdir()) and not (path / "site").is_dir():
        raise OutputRefused(f"{path} holds something else: name an empty folder, or one of this study.")
    return path


def main() -> None:
    """Run the command."""
    run_study(_main)


if __name__ == "__main__":
    main()
