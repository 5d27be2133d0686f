"""The crash study finds nothing in the right order of a round, and finds a wrong order out."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedward.client.registry import Registry
from fedward.client.replies import ReplyStore
from fedward.simulations.studies.ledger_crash import DATASET, STEP, STUDY, Site, crash, figures


def test_crashes_leave_the_promises_standing_and_the_study_resumes(tmp_path: Path) -> None:
    first = crash(6, 1, tmp_path)
    second = crash(12, 1, tmp_path)
    assert second["rows"][:6] == first["rows"]
    assert second["passed"]
    assert len(second["rows"]) == 12


def test_work_before_its_charge_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Site, server_round: int, registry: Registry) -> bytes:
        content = hashlib.sha256(f"round {server_round}".encode()).hexdigest()
        self.note("started", str(server_round))
        registry.budget(DATASET).charge(STUDY, server_round, content, STEP)
        return ReplyStore(self.folder / "replies").store(STUDY, server_round, content, b"reply")

    monkeypatch.setattr(Site, "answer", careless)
    result = crash(16, 0, tmp_path)
    assert not result["figures"]["started_uncharged"]["met"]
    assert not result["passed"]


def test_a_second_reply_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Site.answer

    def forgetful(self: Site, server_round: int, registry: Registry) -> bytes:
        return bytes(answer(self, server_round, registry) + os.urandom(1))

    monkeypatch.setattr(Site, "answer", forgetful)
    assert not crash(2, 0, tmp_path)["figures"]["runs_with_one_reply"]["met"]


def test_a_refusal_counts_against_every_target() -> None:
    found = figures([{"refusal": "LedgerRefused: damaged", "killed": True}])
    assert not found["runs_that_verify"]["met"]
    assert not found["refusals"]["met"]


def test_a_study_that_killed_nothing_shows_nothing() -> None:
    row = {
        "refusal": None,
        "verifies": True,
        "started_uncharged": 0,
        "steps_spent": 3,
        "steps_charged_once": 3,
    }
    assert not figures([{**row, "replies": 1, "killed": False}])["runs_killed"]["met"]


def test_the_command_prints_one_json_object_and_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedward.simulations.studies.ledger_crash", "--json", "--runs", "2"]
    found = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["passed"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    refused = subprocess.run(
        [*command, "--out", str(tmp_path / "other")], capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("OutputRefused: ")
