"""A run's kills follow from its number, 24 runs reach every process in every phase; what a phase is."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.server.study_folder import StudyFolder
from fedward.simulations.chaos import KINDS, PHASES, ROUNDS, SITES, Federation, Kill, schedule
from fedward.simulations.studies import chaos, failover

SEEDS = st.integers(0, 10**6)


@given(SEEDS)
def test_24_runs_kill_every_process_in_every_phase(seed: int) -> None:
    kills = [kill for run in range(24) for kill in schedule(seed, run)]
    reached = {((kill.side, kill.process), kill.phase) for kill in kills}
    assert len(reached) >= min(len(kills), len(KINDS) * len(PHASES))


def test_the_published_runs_reach_all_thirty() -> None:
    kills = [kill for run in range(24) for kill in schedule(0, run)]
    assert {(k.side, k.process, k.phase) for k in kills} == {
        (*kind, phase) for kind, phase in itertools.product(KINDS, PHASES)
    }


@given(SEEDS, st.integers(0, 100))
def test_a_run_is_known_by_its_number_and_has_one_to_three_kills_in_order(seed: int, run: int) -> None:
    kills = schedule(seed, run)
    assert kills == schedule(seed, run)
    assert 1 <= len(kills) <= 3
    when = [(kill.server_round, PHASES.index(kill.phase)) for kill in kills]
    assert when == sorted(when)
    assert all(1 <= kill.server_round <= ROUNDS and 0 <= kill.site < SITES for kill in kills)


def _federation(path: Path, events: list[dict[str, Any]], charged: tuple[int, ...] = ()) -> Federation:
    (path / "s").mkdir()
    lines = [json.dumps(event) + "\n" for event in events]
    (path / "s" / "progress.jsonl").write_text("".join(lines))
    (path / "h" / "budget" / "d").mkdir(parents=True)
    text = "".join(f'{{"body":{{"round":{number},"study":"s"}}}}\n' for number in charged)
    (path / "h" / "budget" / "d" / "ledger.jsonl").write_text(text)
    return Federation(path / "c", [path / "h"], StudyFolder(path / "s"))


OPENED = {"event": "round", "round": 2}
REPLY, CLOSED = {"event": "reply", "hospital": "h"}, {"event": "closed", "round": 2}


@pytest.mark.parametrize(
    ("events", "charged", "phase"),
    [
        ([], (), "before"),
        ([{"event": "round", "round": 1}, REPLY], (1,), "before"),
        ([OPENED], (1,), "asked"),
        ([OPENED], (1, 2), "working"),
        ([OPENED, REPLY], (1, 2), "answered"),
        ([OPENED, REPLY, {"event": "enrolling"}, OPENED], (1,), "asked"),
        ([OPENED, REPLY, CLOSED], (1, 2), "after"),
    ],
)
def test_a_phase_is_read_from_what_the_study_and_the_ledgers_say(
    tmp_path: Path, events: list[dict[str, Any]], charged: tuple[int, ...], phase: str
) -> None:
    federation = _federation(tmp_path, events, charged)
    assert federation.phase(2) == phase
    due = {wanted: federation.is_due(Kill("hospital", "daemon", 0, 2, wanted)) for wanted in PHASES}
    assert due == {wanted: phase in ("after", *PHASES[number:]) for number, wanted in enumerate(PHASES)}


def _row(digest: str = "d", epsilon: float = 1.0, hits: Any = ()) -> dict[str, Any]:
    return {"digest": digest, "model": "m", "epsilon": [epsilon], "hits": list(hits), "seconds": 3.0}


def test_a_run_that_ends_elsewhere_or_costs_more_misses_the_target() -> None:
    every = [{"side": side, "process": process, "seen": phase} for side, process in KINDS for phase in PHASES]
    met = chaos.targets_of([_row(), _row(hits=every)])
    assert [target.is_met for target in met] == [True, True, True]
    missed = chaos.targets_of([_row(), _row(hits=every[:-1]), _row("other"), _row(epsilon=1.1)])
    assert [round(target.figure, 3) for target in missed] == [0.667, 0.667, 29]
    assert not any(target.is_met for target in missed)


def test_a_late_or_different_takeover_misses_the_target() -> None:
    assert all(target.is_met for target in failover.targets_of([_row(), _row()]))
    late = failover.targets_of([_row(), {**_row("other"), "seconds": 31.0}])
    assert not any(target.is_met for target in late)
