"""The log of what left is bounded whatever is asked, its counts add up, and what is taken out of it shows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.client import egress_log
from fedward.client import hospital as hospital_module
from fedward.client.egress import Gate
from fedward.client.egress_log import COPIES_WRITTEN, LOG, LOG_HEAD, EgressLog, counts
from fedward.client.egress_sums import summary
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.spending import Charge
from fedward.common.chain import Head
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import (
    BudgetRefused,
    EgressRefused,
    LedgerRefused,
    OutputRefused,
    Refusal,
    RequestRefused,
)
from fedward.common.files import write_atomically
from fedward.common.ledger import Ledger
from fedward.common.messages import LATENTS, TrainReply, TrainRequest, message_bytes
from fedward.common.models import build_student, parameter_count
from fedward.common.privacy import Mechanism

Fedward = Callable[..., Any]
Ask = Callable[[int], TrainRequest]


@pytest.fixture(autouse=True)
def _flower() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / LOG)


def _asked() -> Message:
    return Message(RecordDict(), 100, "train")


def _kinds(gate: Gate) -> list[str]:
    return [entry.kind for entry in gate.ledger.entries[1:]]


def _totals(gate: Gate) -> dict[str, Any]:
    return dict(summary(Ledger.open(gate.ledger.path), [])["totals"])


# Bounded


def test_the_same_refusal_a_thousand_times_is_a_few_lines_and_every_byte_is_counted(gate: Gate) -> None:
    sent = [message_bytes(gate.refuse(BudgetRefused("None is left."), _asked())) for _ in range(1000)]
    kinds = _kinds(gate)
    assert kinds.count("left") == COPIES_WRITTEN
    assert kinds.count("counted") == 10  # at 1, 2, 4, ... 512
    totals = _totals(gate)
    assert (totals["messages"], totals["bytes"]) == (1000, sum(sent))
    assert totals["refusals"] == {"BudgetRefused": 1000}
    assert totals["by_class"] == {"public": {"fields": 2000, "bytes": sum(sent)}}


def test_refusals_that_differ_each_time_are_bounded_too(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator's own words are in a sentence, so it can make each another."""
    monkeypatch.setattr(egress_log, "REFUSALS_WRITTEN", 20)
    sent = [
        message_bytes(gate.refuse(RequestRefused(f"No study {'x' * n!r}."), _asked())) for n in range(100)
    ]
    assert _kinds(gate).count("left") == 20
    assert len(_kinds(gate)) < 20 + 10
    totals = _totals(gate)
    assert (totals["messages"], totals["bytes"]) == (100, sum(sent))
    assert totals["refusals"] == {"RequestRefused": 100}
    gate.refuse(BudgetRefused("None is left."), _asked())  # another name has lines of its own
    assert _kinds(gate)[-1] == "left"


def _reply(number: int) -> tuple[RecordDict, Charge]:
    reply = TrainReply("study", number, "h", 10, "fp32", np.zeros(99, np.uint8))
    step = Mechanism(4.0, 0.25, 1)
    head = Head(number, f"{number:064x}")
    return reply.to_records(), Charge("study", number, "a" * 64, "dp-sgd", step, {}, head, "2026-01-01")


def test_a_stored_reply_that_is_fetched_again_and_again_is_counted(gate: Gate) -> None:
    content, charge = _reply(1)
    sent = [message_bytes(gate.release("train", content, _asked(), (charge,))) for _ in range(100)]
    assert _kinds(gate).count("left") == COPIES_WRITTEN
    found = summary(gate.ledger, [])
    assert found["totals"]["by_message"]["train"] == {"messages": 100, "bytes": sum(sent)}
    assert (found["costs"][0]["replies"], found["costs"][0]["charges"]) == (100, 1)
    assert sum(message["times"] * message["bytes"] for message in found["messages"]) == sum(sent)


def test_what_is_held_back_again_and_again_is_counted_and_told(
    fedward: Fedward, gate: Gate, tmp_path: Path
) -> None:
    content, _ = _reply(1)
    for _ in range(20):
        with pytest.raises(EgressRefused):
            gate.release("train", content, _asked(), ())
    assert _kinds(gate).count("held") == COPIES_WRITTEN
    gate.refuse(RequestRefused("No."), _asked())
    assert "20 messages would have carried something" in _shown(fedward, tmp_path, "--explain")


def test_each_charged_reply_has_a_line_however_many_refusals_there_were(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_log, "REFUSALS_WRITTEN", 2)
    for number in range(20):
        gate.refuse(RequestRefused(f"No {number}."), _asked())
        content, charge = _reply(number)
        gate.release("train", content, _asked(), (charge,))
    charges = [charge for e in gate.ledger.entries for charge in e.body.get("charges", [])]
    assert [charge["round"] for charge in charges] == [*range(20)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([BudgetRefused, RequestRefused])), max_size=60))
def test_whatever_is_asked_the_sums_are_those_of_what_was_sent(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, type[Refusal]]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(egress_log, "COPIES_WRITTEN", 2)
        patch.setattr(egress_log, "REFUSALS_WRITTEN", 5)
        path = tmp_path_factory.mktemp("site") / LOG
        gates = [Gate(path), Gate(path)]  # two daemons
        sent = [
            message_bytes(gates[n % 2].refuse(kind("x" * length), _asked()))
            for n, (length, kind) in enumerate(asked)
        ]
    totals = _totals(Gate(path))
    assert (totals["messages"], totals["bytes"]) == (len(sent), sum(sent))
    assert _kinds(Gate(path)).count("left") <= 10


def test_a_count_is_on_the_disk_before_the_message_is_there(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(COPIES_WRITTEN):
        gate.refuse(BudgetRefused("None is left."), _asked())

    def full(path: Path, *arguments: Any) -> None:
        raise OutputRefused("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(egress_log, "write_atomically", full)
        reply = gate.refuse(BudgetRefused("None is left."), _asked())
        assert "cannot be written" in str(reply.error.reason)
    assert _totals(gate)["messages"] == COPIES_WRITTEN


@pytest.mark.parametrize("damage", ["deleted", "older", "no JSON"])
def test_a_file_of_counts_that_was_deleted_or_turned_back_is_refused(gate: Gate, damage: str) -> None:
    path = gate.ledger.path.with_name("again.json")
    for number in range(COPIES_WRITTEN + 4):
        if number == COPIES_WRITTEN + 1:
            older = path.read_bytes()
        gate.refuse(BudgetRefused("None is left."), _asked())
    if damage == "deleted":
        path.unlink()
    else:
        write_atomically(path, older if damage == "older" else b"[1]")
    with pytest.raises(LedgerRefused, match=r"damaged" if damage == "no JSON" else r"names 4 repeated ones"):
        counts(gate.ledger)
    with pytest.raises(LedgerRefused):
        EgressLog.open(gate.ledger.path).write("left", gate.ledger.entries[1].body)


# What is taken out shows


@pytest.fixture
def site(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:20], phantom.train.labels[:20])
    create_hospital(tmp_path / "site", "north", records, 50.0, 1e-5, None)
    return tmp_path / "site"


@pytest.fixture
def ask(make_local: Callable[..., LocalSettings]) -> Ask:
    local = make_local()
    packed = encode(np.zeros(parameter_count(build_student(local.spec)), np.float32), "fp32")
    return lambda number: TrainRequest("study", number, local, 0.5, ("fp32", "fp32"), {LATENTS: packed})


def _leave(site: Path, ask: Ask, *rounds: int) -> None:
    """A refusal, then a reply, for each round."""
    gate, hospital = Gate(site / LOG), Hospital(site)
    for number in rounds:
        gate.refuse(RequestRefused(f"Not round {number}."), _asked())
        reply = hospital.answer(ask(number))
        gate.release("train", reply.to_records(), _asked(), hospital.charges_of(reply))


def _cut(site: Path, lines: int) -> None:
    log = site / LOG
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:lines]))
    log.with_name(log.name + ".head").unlink()


def _shown(fedward: Fedward, site: Path, *options: str) -> str:
    done = fedward("hospital", "egress", "--state", site, *options)
    assert (done.code, done.err) == (0, "")
    return " ".join(done.out.split())


def test_a_whole_log_lacks_nothing(fedward: Fedward, site: Path, ask: Ask) -> None:
    _leave(site, ask, 1, 2)
    assert json.loads(_shown(fedward, site, "--json"))["missing"] is None
    assert "MISSING" not in _shown(fedward, site) + _shown(fedward, site, "--explain")


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_log_that_was_cut_with_its_head_says_so(fedward: Fedward, site: Path, ask: Ask, lines: int) -> None:
    _leave(site, ask, 1, 2)
    _cut(site, lines)
    missing = json.loads(_shown(fedward, site, "--json"))["missing"]
    assert (missing["entry"], missing["study"], missing["round"]) == (3, "study", 2)
    for option in ((), ("--explain",)):
        shown = _shown(fedward, site, *option)
        assert shown.startswith("ENTRIES ARE MISSING from this log: it had at least 4 on ")
        assert 'at round 2 of "study"' in shown


def test_a_deleted_log_that_was_started_anew_says_so(fedward: Fedward, site: Path, ask: Ask) -> None:
    _leave(site, ask, 1)
    shutil.rmtree(site / "egress")
    _leave(site, ask, 2)
    assert _shown(fedward, site).startswith("ENTRIES ARE MISSING")


def test_a_deleted_log_is_missed(fedward: Fedward, site: Path, ask: Ask) -> None:
    _leave(site, ask, 1)
    shutil.rmtree(site / "egress")
    done = fedward("hospital", "egress", "--state", site)
    assert (done.code, done.err.partition(":")[0]) == (1, "LedgerRefused")
    assert "is gone: the privacy budget's ledger notes that it had entries" in done.err


def test_a_round_that_is_run_again_after_a_crash_keeps_the_end_of_its_charge(
    site: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What left between the crash and the second run must not make it another charge."""
    gate = Gate(site / LOG)
    gate.refuse(RequestRefused("No."), _asked())

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", crash)
        with pytest.raises(KeyboardInterrupt):
            Hospital(site).answer(ask(1))
    gate.refuse(RequestRefused("No again."), _asked())
    hospital = Hospital(site)
    (charge,) = hospital.charges_of(hospital.answer(ask(1)))
    assert charge.extra[LOG_HEAD]["entry"] == 1
