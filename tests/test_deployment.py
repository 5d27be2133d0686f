"""A study over real processes ends in the very model of the in-process run, whoever is killed meanwhile."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedward.client.egress_log import LOG
from fedward.client.registry import Registry
from fedward.common.config import LocalSettings, Study
from fedward.common.ledger import Ledger
from fedward.server.study_folder import StudyFolder
from fedward.simulations.deployment import Deployment, deployed, renewed, wait_for
from fedward.simulations.federation import run_in_process

MakeStudies = Callable[..., tuple[StudyFolder, "Expected"]]


@dataclass(frozen=True)
class Expected:
    """What an undisturbed run gives."""

    digest: str
    spent: list[float]


def _spent(folders: list[Path]) -> list[float]:
    """Each hospital's epsilon, from ledgers that verify."""
    for folder in folders:
        Ledger.open(folder / LOG)
    return [budget.spent() for folder in folders for budget in Registry(folder / "budget").budgets()]


@pytest.fixture
def studies(
    tmp_path: Path,
    make_federation: Callable[..., StudyFolder],
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
) -> MakeStudies:
    """studies(rounds) -> a study of two hospitals, ready to run, and what its twin gave in this process."""

    def make(rounds: int = 2, **changes: Any) -> tuple[StudyFolder, Expected]:
        settings = {"quorum": 2, "round_timeout": 300.0} | changes
        study = make_study(make_local(rounds=rounds), (30, 50), **settings)
        twin = make_federation(tmp_path / "twin", study)
        run_in_process(twin.path, len(study.hospitals))
        spent = _spent(sorted((twin.path / "hospitals").iterdir()))
        digest = hashlib.sha256(twin.final.read_bytes()).hexdigest()
        return make_federation(tmp_path / "s", study), Expected(digest, spent)

    return make


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _assert_as_undisturbed(deployment: Deployment, expected: Expected) -> None:
    assert deployment.digest() == expected.digest
    assert _spent(deployment.hospitals) == expected.spent


def test_a_study_over_real_processes_gives_the_model_of_the_in_process_run(
    studies: MakeStudies, tmp_path: Path
) -> None:
    study, expected = studies()
    with deployed(study, tmp_path) as deployment:
        ordered = deployment.order("start", str(study.path), "--wait", "--json")
        assert (ordered.returncode, json.loads(ordered.stdout)["state"]) == (0, "finished")
        status = json.loads(deployment.order("status", "--json").stdout)
        assert status["studies"][0]["rounds"] == {"closed": 2, "of": 2}
        pids = [deployment.pid(folder, "daemon") for folder in deployment.hospitals]
        pids += [deployment.pid(folder, "supernode") for folder in deployment.hospitals]
        pids.append(deployment.pid(deployment.coordinator, "superlink"))
        assert (deployment.hospitals[0] / "daemon.sock").stat().st_mode & 0o777 == 0o600
    assert not any(map(_is_alive, pids))
    assert not (deployment.coordinator / "processes.json").exists()
    _assert_as_undisturbed(deployment, expected)


HOSPITAL, COORDINATOR = "hospital", "coordinator"
KILLS = {
    "the task runner": (HOSPITAL, "task-runner"),
    "the daemon": (HOSPITAL, "daemon"),
    "the SuperNode": (HOSPITAL, "supernode"),
    "the ServerApp": (COORDINATOR, "serverapp"),
    "SuperExec": (COORDINATOR, "superexec"),
    "SuperLink": (COORDINATOR, "superlink"),
}
DELAYS = (0.0, 2.0, 4.0)  # seconds after a round was opened: before, in and after the hospitals' work


@pytest.mark.slow
@pytest.mark.parametrize("victim", KILLS)
def test_whoever_is_killed_the_study_goes_on_by_itself_to_the_same_model(
    studies: MakeStudies, tmp_path: Path, victim: str
) -> None:
    study, expected = studies(len(DELAYS) + 1)
    side, program = KILLS[victim]
    with deployed(study, tmp_path) as deployment:
        deployment.order("start", str(study.path))
        folder = deployment.coordinator if side == COORDINATOR else deployment.hospitals[0]
        for server_round, delay in enumerate(DELAYS, start=1):
            wait_for(deployment.opened(server_round), 300.0)
            time.sleep(delay)
            deployment.kill(folder, program)
        wait_for(study.final.exists, 400.0)
        _assert_as_undisturbed(deployment, expected)


@pytest.mark.slow
def test_over_tls_a_killed_node_signs_off_by_its_key_and_is_back_long_before_flowers_minute(
    studies: MakeStudies, tmp_path: Path
) -> None:
    study, expected = studies(3)
    with deployed(study, tmp_path, is_secured=True) as deployment:
        deployment.order("start", str(study.path))
        wait_for(deployment.opened(2), 300.0)
        for number in (0, 1):
            deployment.kill(deployment.hospitals[number], "supernode")
        wait_for(study.final.exists, 200.0)
        _assert_as_undisturbed(deployment, expected)
    assert max(event["seconds"] for event in deployment.events("closed")) < 45.0


@pytest.mark.slow
def test_over_tls_a_hospital_that_loses_its_models_gets_the_full_one_in_the_same_round(
    studies: MakeStudies, tmp_path: Path
) -> None:
    study, expected = studies(4, uplink_codec="coded3", downlink_codec="diff3")
    with deployed(study, tmp_path, is_secured=True) as deployment:
        deployment.order("start", str(study.path))
        wait_for(deployment.opened(2), 300.0)
        shutil.rmtree(deployment.hospitals[0] / "replicas")
        wait_for(deployment.opened(3), 300.0)
        deployment.kill(deployment.coordinator, "serverapp")
        wait_for(study.final.exists, 300.0)
        _assert_as_undisturbed(deployment, expected)
    assert [event["replies"] for event in deployment.events("closed")] == [2] * 4
    assert "ReplicaUnknown" in (deployment.hospitals[0] / LOG).read_text()


@pytest.mark.slow
def test_gateways_that_are_killed_and_keys_that_are_renewed_lose_no_round(
    studies: MakeStudies, tmp_path: Path
) -> None:
    study, expected = studies(4)
    with deployed(study, tmp_path, is_secured=True) as deployment:
        first, second = deployment.hospitals
        deployment.order("start", str(study.path))
        wait_for(deployment.opened(1), 300.0)
        for folder in (deployment.coordinator, first):
            deployment.kill(folder, "gateway")
        wait_for(deployment.opened(2), 200.0)
        renewed(deployment.coordinator, first, "--new-keys")
        wait_for(deployment.opened(3), 200.0)
        renewed(deployment.coordinator, second)
        wait_for(study.final.exists, 300.0)
        _assert_as_undisturbed(deployment, expected)
    assert max(event["seconds"] for event in deployment.events("closed")) < 60.0


@pytest.mark.slow
def test_a_coordinator_that_is_ended_in_a_round_goes_on_when_it_is_up_again(
    studies: MakeStudies, tmp_path: Path
) -> None:
    study, expected = studies(3)
    with deployed(study, tmp_path) as deployment:
        deployment.order("start", str(study.path))
        wait_for(deployment.opened(2), 120.0)
    assert not study.final.exists()
    with deployed(study, tmp_path) as deployment:
        wait_for(study.final.exists, 200.0)
        _assert_as_undisturbed(deployment, expected)


@pytest.mark.slow
def test_a_quorum_closes_rounds_without_a_hospital_that_stays_away_and_says_so(
    studies: MakeStudies, tmp_path: Path
) -> None:
    study, _ = studies(2, quorum=1, round_timeout=20.0)
    with deployed(study, tmp_path, apart=(1,)) as deployment:
        assert deployment.order("start", str(study.path), "--wait").returncode == 0
    assert [event["replies"] for event in deployment.events("closed")] == [1, 1]
    for event in deployment.events("closed"):
        assert [(lost["hospital"], lost["name"]) for lost in event["refusals"]] == [
            ("hospital-1", "NotConnected")
        ]
    assert not (deployment.hospitals[1] / "replies").exists()
