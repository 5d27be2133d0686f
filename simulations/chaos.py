"""Who is killed when, and what becomes of the study: a federation on loopback, kill -9, and a dead network.

A template is made once, with all keys, sites and seeded state folders; every run is a copy of it, so what the
runs end in can be compared bit for bit.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from fedward.client.egress_log import LOG
from fedward.client.registry import Registry
from fedward.common.config import EnrolledHospital, declared_count
from fedward.common.errors import EngineFailed
from fedward.common.ledger import verify
from fedward.common.supervision import end
from fedward.server.study_folder import PUBLISHED, StudyFolder
from fedward.simulations.deployment import COMMAND, Deployment, children, found, let_in
from fedward.simulations.phantoms import make_phantoms
from fedward.simulations.studies.round_overhead import IMAGES, make_federation, overhead_study

SITES, ROUNDS = 3, 4
_LOCAL_STEPS = 80  # so that a round's work takes a second or two
_LOOK_SECONDS = 0.02
_RESTART_SECONDS = 1.0  # as the systemd units have it
OFFICE, SITE = "coordinator", "hospital"
SUPERVISOR = "up"
# (side, process): all that run; nginx is the program "gateway" on either side.
KINDS = (
    (OFFICE, "superlink"),
    (OFFICE, "superexec"),
    (OFFICE, "serverapp"),
    (OFFICE, "gateway"),
    (OFFICE, SUPERVISOR),
    (SITE, "daemon"),
    (SITE, "supernode"),
    (SITE, "task-runner"),
    (SITE, "gateway"),
    (SITE, SUPERVISOR),
)
# Of a round: it is open; a hospital has charged it and trains; a reply was folded in.
PHASES = ("asked", "working", "answered")
CUTS = {5: 90.0, 11: 90.0, 17: 600.0}  # runs whose network is cut too, and for how many seconds


@dataclass(frozen=True)
class Kill:
    """One kill -9.

    Attributes:
        side, process: of `KINDS`.
        site: which hospital, where it is one's.
        server_round, phase: when.
    """

    side: str
    process: str
    site: int
    server_round: int
    phase: str


def schedule(seed: int, run: int) -> list[Kill]:
    """The kills of one run, in order: one to three, so that over 24 runs each kind dies in each phase."""
    rng = random.Random(seed)  # noqa: S311 - chooses who dies, no secret
    pairs = list(itertools.product(KINDS, PHASES))
    rng.shuffle(pairs)
    counts = [rng.choice((1, 2, 2, 3)) for _ in range(run + 1)]
    first = sum(counts[:run])
    chosen = [pairs[number % len(pairs)] for number in range(first, first + counts[run])]
    own = random.Random(f"{seed} {run}")  # noqa: S311
    rounds = sorted(own.randint(1, ROUNDS) for _ in chosen)
    kills = [
        Kill(side, process, own.randrange(SITES), server_round, phase)
        for ((side, process), phase), server_round in zip(chosen, rounds, strict=True)
    ]
    return sorted(kills, key=lambda kill: (kill.server_round, PHASES.index(kill.phase)))


def template_in(out: Path, seed: int) -> Path:
    """The folder of the seed's template, which is made whole or not at all.

    Raises:
        OutputRefused: it cannot be written.
    """
    template, draft = out / f"t{seed}", out / "draft"
    if not template.exists():
        shutil.rmtree(draft, ignore_errors=True)
        _make_template(draft, seed)
        draft.rename(template)
    return template


def _make_template(path: Path, seed: int) -> None:
    """A coordinator, three sites with seeded noise, and a study, in folders that nothing runs on."""
    dataset = make_phantoms(size=16, counts=(SITES * IMAGES, 20, 20), seed=seed)
    hospitals = tuple(EnrolledHospital(f"hospital-{i}", declared_count(IMAGES)) for i in range(SITES))
    study = overhead_study(ROUNDS, "chaos")
    local = replace(study.local, local_steps=_LOCAL_STEPS)
    study = replace(study, local=local, hospitals=hospitals, quorum=SITES, round_timeout=3600.0)
    folder = make_federation(path / "s", study, dataset, dataset.val)
    found(path / "c")
    for number in range(SITES):
        let_in(path / "c", folder.path / "hospitals" / str(number))


@dataclass
class Federation(Deployment):
    """A copy of the template whose processes run; a supervisor that dies comes back, as under systemd."""

    logs: Path = field(default=Path())
    _processes: dict[tuple[str, int], "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def of(cls, path: Path, study: Path | None = None, hospitals: list[Path] | None = None) -> Iterator[Self]:
        """All of it, up for the length of the block; study and hospitals are by default the template's."""
        folder = study or path / "s"
        sites = hospitals or sorted((folder / "hospitals").iterdir())
        made = cls(path / "c", sites, StudyFolder(folder), path)
        try:
            made.start(OFFICE, 0)
            for number in range(len(sites)):
                made.start(SITE, number)
            yield made
        finally:
            for process in reversed(made._processes.values()):
                end(process, 60)

    def folder(self, side: str, number: int) -> Path:
        """A state folder."""
        return self.coordinator if side == OFFICE else self.hospitals[number]

    def start(self, side: str, number: int) -> None:
        """`fedward ... up`."""
        command = [*COMMAND, side, "up", "--state", str(self.folder(side, number))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.logs / f"{side}-{number}.log").open("ab") as log:
            self._processes[side, number] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def strike(self, kill: Kill) -> None:
        """Kill it; whatever supervises supervisors waits a second and starts it again."""
        number = 0 if kill.side == OFFICE else kill.site
        if kill.process != SUPERVISOR:
            self.kill(self.folder(kill.side, number), kill.process)
            return
        self.kill_supervisor(kill.side, number)
        time.sleep(_RESTART_SECONDS)
        self.start(kill.side, number)

    def kill_supervisor(self, side: str = OFFICE, number: int = 0) -> None:
        """kill -9 of `fedward ... up`."""
        process = self._processes[side, number]
        process.kill()
        process.wait()

    def begin(self) -> None:
        """`fedward coordinator start`.

        Raises:
            EngineFailed: it was refused.
        """
        done = self.order("start", str(self.study.path))
        if done.returncode != 0:
            raise EngineFailed(f"The study was not started: {done.stderr.strip()}")

    def cut(self, seconds: float) -> None:
        """Nothing comes or goes: the coordinator's nginx is stopped, connections stay open."""
        master = self.pid(self.coordinator, "gateway")
        family = [master, *children(master)]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def phase(self, server_round: int) -> str:
        """Where a round stands: of `PHASES`, or "before" or "after"."""
        events = self.all_events()
        opened = [
            n for n, one in enumerate(events) if one["event"] == "round" and one["round"] == server_round
        ]
        if not opened:
            return "before"
        since = [one["event"] for one in events[opened[-1] :]]
        if "closed" in since or "finished" in since:
            return "after"
        if "reply" in since:
            return "answered"
        charge = f'"round":{server_round},'.encode()
        ledgers = (one for folder in self.hospitals for one in folder.glob("budget/*/ledger.jsonl"))
        return "working" if any(charge in one.read_bytes() for one in ledgers) else "asked"

    def is_due(self, kill: Kill) -> bool:
        """Whether it is time: the phase has come, or was too short to be seen."""
        now = self.phase(kill.server_round)
        return now == "after" or now in PHASES[PHASES.index(kill.phase) :] or self.is_finished()

    def is_finished(self) -> bool:
        """Whether the release is published."""
        return (self.study.path / PUBLISHED).exists()

    def outcome(self) -> dict[str, Any]:
        """What the study ended in: the release, and what the sites' ledgers say."""
        ledgers = [one for folder in self.hospitals for one in folder.glob("budget/*/ledger.jsonl")]
        verified = [verify(path) for path in (*ledgers, *(folder / LOG for folder in self.hospitals))]
        budgets = [budget for folder in self.hospitals for budget in Registry(folder / "budget").budgets()]
        return {
            "digest": json.loads((self.study.path / PUBLISHED).read_bytes())["digest"],
            "model": self.digest(),
            "epsilon": [budget.spent() for budget in budgets],
            "ledgers": len(verified),
        }


def run_once(template: Path, path: Path, kills: list[Kill], cut: float, seconds: float) -> dict[str, Any]:
    """One run on a copy of the template; what was hit, when, and what it ended in.

    Args:
        cut: seconds without a network, in the second round's work; 0 for none.
        seconds: until the run counts as lost.

    Raises:
        EngineFailed: it did not end in time.
        LedgerRefused: a ledger does not verify.
    """
    shutil.copytree(template, path)
    started, hits = time.monotonic(), []
    deadline = started + seconds + cut
    with Federation.of(path) as federation:
        federation.begin()
        for kill in kills:
            until(lambda kill=kill: federation.is_due(kill), deadline, path)  # type: ignore[misc]
            hits.append({**kill.__dict__, "seen": federation.phase(kill.server_round)})
            federation.strike(kill)
        if cut:
            until(lambda: federation.phase(2) != "before", deadline, path)
            federation.cut(cut)
        until(federation.is_finished, deadline, path)
        found_out = federation.outcome()
    return {"hits": hits, "cut": cut, "seconds": round(time.monotonic() - started, 1), **found_out}


def until(holds: Callable[[], bool], deadline: float, path: Path) -> None:
    """Wait.

    Raises:
        EngineFailed: the deadline (of `time.monotonic`) has passed.
    """
    while not holds():
        if time.monotonic() > deadline:
            raise EngineFailed(f"The study did not go on in time; see {path}.")
        time.sleep(_LOOK_SECONDS)
