"""What both sides show a monitoring system: the figures on these lists, and nothing private."""

import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedward.client import prometheus as hospital_side
from fedward.client.prometheus import HospitalMetrics
from fedward.client.registry import Registry
from fedward.client.state_folder import BUDGETS
from fedward.common.config import LocalSettings, Study
from fedward.common.exposition import exposed
from fedward.common.flower_tools import free_port
from fedward.common.instants import utc_now
from fedward.common.logs import ALWAYS, FIELDS
from fedward.common.messages import refusal_text
from fedward.common.reply_codes import NO_DAEMON, NOT_APPROVED, REFUSED, UNPROVEN
from fedward.common.supervision import end
from fedward.server import prometheus as coordinator_side
from fedward.server.enrolment import CERTIFICATE_LIFETIME
from fedward.server.following import REASONS
from fedward.server.orders import Orders, Report
from fedward.server.prometheus import CoordinatorMetrics
from fedward.server.study_folder import StudyFolder
from fedward.simulations.deployment import COMMAND, wait_for
from fedward.simulations.federation import run_in_process

# Whoever adds a figure adds it here, with the labels by which it is told apart, and thinks of what it tells.
BOTH = {
    "fedward_build_info": ("version",),
    "fedward_process_up": ("process",),
    "fedward_process_restarts_total": ("process",),
    "fedward_disk_free_bytes": (),
}
COORDINATOR = BOTH | {
    "fedward_study_state": ("study", "state"),
    "fedward_rounds_closed": ("study",),
    "fedward_rounds_planned": ("study",),
    "fedward_round_seconds": ("study",),
    "fedward_rounds_seconds_total": ("study",),
    "fedward_replies_total": ("study",),
    "fedward_refusals_total": ("study", "refusal"),
    "fedward_study_refusals_total": ("study", "refusal"),
    "fedward_epsilon_spent": ("study",),
    "fedward_epsilon_planned": ("study",),
    "fedward_received_bytes_total": ("study",),
    "fedward_sent_bytes_total": ("study",),
    "fedward_sites_enrolled": ("study",),
    "fedward_sites_online": ("study",),
    "fedward_sites_answered": ("study",),
    "fedward_site_last_seen_timestamp_seconds": ("study", "site"),
}
HOSPITAL = BOTH | {
    "fedward_answers_total": ("kind",),
    "fedward_answers_refused_total": ("kind",),
    "fedward_last_answer_timestamp_seconds": (),
    "fedward_left_messages_total": ("message",),
    "fedward_left_bytes_total": (),
    "fedward_held_messages_total": (),
    "fedward_last_left_timestamp_seconds": (),
    "fedward_budget_epsilon_spent": ("dataset",),
    "fedward_budget_epsilon_planned": ("dataset",),
    "fedward_budget_epsilon_left": ("dataset",),
    "fedward_budget_suspended": ("dataset",),
    "fedward_budget_current": (),
    "fedward_certificate_expiry_timestamp_seconds": (),
}
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
Page = dict[str, dict[str, float]]  # name -> labels as written -> value


def read(page: bytes) -> Page:
    """A page's samples."""
    found: Page = {}
    for line in page.decode().splitlines():
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            found.setdefault(match[1], {})[match[2] or ""] = float(match[3])
    return found


def _scraped(port: int, needed: str) -> Page | None:
    """The page, once it is there and has a figure."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            found = read(answer.read())
            return found if needed in found else None
    except (urllib.error.URLError, OSError):
        return None


@contextmanager
def _up(log: Path, *arguments: str) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen([*COMMAND, *arguments], stdout=file, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            end(process, 60)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    make_federation: Callable[..., StudyFolder],
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
) -> StudyFolder:
    """A study of two rounds that two hospitals took part in and one did not."""
    folder = make_federation(tmp_path_factory.mktemp("f") / "s", make_study(make_local(rounds=2), quorum=2))
    run_in_process(folder.path, 2)
    return folder


@pytest.fixture
def ordered(tmp_path: Path, finished: StudyFolder) -> Path:
    """A coordinator's state folder with that study."""
    orders = Orders(tmp_path / "c")
    order = orders.give(finished.path, True)
    orders.report(order, Report("finished", "", 7, order.number))
    return tmp_path / "c"


def test_the_lists_of_figures_are_those_of_the_sources() -> None:
    for side, listed in ((coordinator_side, COORDINATOR), (hospital_side, HOSPITAL)):
        assert {metric.name: metric.labels for metric in side.METRICS} == listed
        assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in side.METRICS)


def test_a_coordinator_tells_of_its_studies(ordered: Path, finished: StudyFolder) -> None:
    page = read(exposed(CoordinatorMetrics(ordered)()))
    study = finished.study()
    label = f'study="{study.name}"'
    rows = [
        json.loads(line)
        for line in (finished.path / "progress.jsonl").read_text().splitlines()
        if '"closed"' in line
    ]
    assert set(page) <= set(COORDINATOR)
    assert page["fedward_study_state"][f'{label},state="finished"'] == 1
    assert sum(page["fedward_study_state"].values()) == 1
    assert page["fedward_rounds_closed"] == page["fedward_rounds_planned"] == {label: 2}
    assert page["fedward_replies_total"] == {label: 4}
    assert page["fedward_refusals_total"] == {f'{label},refusal="NotConnected"': 2}
    assert page["fedward_epsilon_spent"] == {label: rows[-1]["epsilon"]}
    assert page["fedward_sent_bytes_total"] == {label: sum(row["downlink_bytes"] for row in rows)}
    assert page["fedward_received_bytes_total"][label] > sum(row["uplink_bytes"] for row in rows)
    assert page["fedward_sites_online"] == page["fedward_sites_answered"] == {label: 2}
    assert len(page["fedward_site_last_seen_timestamp_seconds"]) == 2
    assert all(
        abs(seen - utc_now().timestamp()) < 600
        for seen in page["fedward_site_last_seen_timestamp_seconds"].values()
    )


def test_a_refusals_name_that_a_hospital_made_up_makes_no_new_figure(
    ordered: Path, tmp_path: Path, make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    folder = StudyFolder(tmp_path / "made up")
    folder.create(make_study(make_local(), name="made up"), None)
    for number in range(3):
        lost = [{"hospital": "hospital-0", "name": f"Miller{number}", "message": ""}]
        row = {"replies": 2, "refusals": lost, "seconds": 1.0, "uplink_bytes": 1, "downlink_bytes": 1}
        folder.note("closed", round=number + 1, epsilon=0.1, **row)
    folder.note("closed", round="damaged")
    Orders(ordered).give(folder.path, True)
    page = read(exposed(CoordinatorMetrics(ordered)()))
    assert page["fedward_refusals_total"]['study="made up",refusal="other"'] == 3
    assert not any("Miller" in labels for labels in page["fedward_refusals_total"])


def test_two_studies_of_one_name_are_told_apart(ordered: Path, finished: StudyFolder, tmp_path: Path) -> None:
    twin = StudyFolder(tmp_path / "twin")
    twin.create(finished.study(), None)
    Orders(ordered).give(twin.path, False)
    assert len(read(exposed(CoordinatorMetrics(ordered)()))["fedward_rounds_closed"]) == 2
    numbered = StudyFolder(tmp_path / "numbered")
    numbered.create(replace(finished.study(), name=f"{finished.study().name} (2)"), None)
    Orders(ordered).give(numbered.path, False)
    assert len(read(exposed(CoordinatorMetrics(ordered)()))["fedward_rounds_closed"]) == 3


@pytest.mark.parametrize("code", [UNPROVEN, NOT_APPROVED, NO_DAEMON, 2, REFUSED])
def test_whatever_an_answer_was_lost_for_has_a_name_of_its_own(code: int) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    reply = Message(Error(code, "BudgetRefused: no"), reply_to=Message(RecordDict(), 1, "train"))
    assert refusal_text(reply)[0] in REASONS


def test_a_hospital_tells_of_its_budget_and_of_what_left_and_of_nothing_else(finished: StudyFolder) -> None:
    state = finished.path / "hospitals" / "0"
    metrics = HospitalMetrics(state)
    try:
        page = wait_for(
            lambda: (found := read(exposed(metrics())))["fedward_budget_current"][""] == 1 and found
        )
    finally:
        metrics.close()
    (budget,) = Registry(state / BUDGETS).budgets()
    assert set(page) <= set(HOSPITAL)
    (label,) = page["fedward_budget_epsilon_spent"]
    assert page["fedward_budget_epsilon_spent"][label] == budget.spent()
    assert page["fedward_budget_epsilon_left"][label] == budget.left()
    assert page["fedward_left_messages_total"]['message="train"'] == 2
    entries = map(json.loads, (state / "egress" / "ledger.jsonl").read_text().splitlines())
    left = sum(entry["body"]["bytes"] for entry in entries if entry["kind"] == "left")
    assert page["fedward_left_bytes_total"][""] == left
    text = exposed(metrics()).decode()
    for private in (str(state), "data.npz", str(finished.path.parent), "hospital-0"):
        assert private not in text


def test_labels_of_a_hospital_are_words_of_its_own(tmp_path: Path) -> None:
    """A coordinator chooses the types of its messages: they must not become labels."""
    (tmp_path / "logs").mkdir()
    odd = {"event": "a message was answered", "kind": "query.MrsMiller", "reply": 1, "time": "never"}
    (tmp_path / "logs" / "daemon.log").write_text(json.dumps(odd) + "\nno JSON {\n[]\n" + '{"event":')
    metrics = HospitalMetrics(tmp_path)
    page = read(exposed(metrics()))
    assert page["fedward_answers_total"]['kind="other"'] == 1
    assert page["fedward_answers_refused_total"]['kind="other"'] == 1
    with (tmp_path / "logs" / "daemon.log").open("a") as file:
        file.write('"a message was answered","kind":"train","reply":0,"time":"2026-01-31T12:00:00.500Z"}\n')
    page = read(exposed(metrics()))
    assert page["fedward_answers_total"]['kind="train"'] == 1
    assert page["fedward_last_answer_timestamp_seconds"][""] == 1769860800.5


def test_a_site_tells_when_its_certificate_ends(
    tmp_path: Path, make_coordinator: Callable[..., object], join_federation: Callable[..., object]
) -> None:
    state = tmp_path / "h"
    join_federation(make_coordinator(tmp_path / "c", now=utc_now()), state, "St. Mary", utc_now())
    page = read(exposed(HospitalMetrics(state)()))
    ends = page["fedward_certificate_expiry_timestamp_seconds"][""]
    assert abs(ends - (utc_now() + CERTIFICATE_LIFETIME).timestamp()) < timedelta(hours=1).total_seconds()


def test_both_sides_are_scraped_while_they_are_up_and_their_logs_are_lines_of_json(
    tmp_path: Path, finished: StudyFolder
) -> None:
    ports, superlink, state = (free_port(), free_port()), free_port(), finished.path / "hospitals" / "1"
    coordinator = ["coordinator", "up", "--state", str(tmp_path / "c"), "--trial-port", str(superlink)]
    hospital = ["hospital", "up", "--state", str(state), "--superlink", f"127.0.0.1:{superlink}"]
    with (
        _up(tmp_path / "c.log", *coordinator, "--metrics-port", str(ports[0])),
        _up(tmp_path / "h.log", *hospital, "--metrics-port", str(ports[1])),
    ):
        for port, listed, process in ((ports[0], COORDINATOR, "superlink"), (ports[1], HOSPITAL, "daemon")):
            page = wait_for(lambda port=port: _scraped(port, "fedward_process_up"))
            assert page["fedward_process_up"][f'process="{process}"'] == 1
            assert set(page) <= set(listed)
        lines = wait_for(lambda: (state / "logs" / "daemon.log").read_text().splitlines())
    for line in lines:
        assert set(json.loads(line)) <= {*FIELDS, *ALWAYS}
