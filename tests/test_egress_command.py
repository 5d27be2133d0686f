"""`fedward hospital egress` says what left, in full, in sums and in plain words, and only what is so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedward.client.egress import Gate
from fedward.client.egress_fields import CONSENTED, DP, PUBLIC, SEEDED, WAIVED
from fedward.client.egress_log import LOG
from fedward.client.registry import Registry
from fedward.common.errors import BudgetRefused, EgressRefused, LedgerRefused
from fedward.common.files import canonical_json
from fedward.common.measure_messages import MeasureReply
from fedward.common.messages import CONFIG, TrainReply
from fedward.common.privacy import Mechanism, epsilon

DELTA, STEP = 1e-5, Mechanism(2.1, 0.109, 3)
MEASURING = Mechanism(9.0, 1.0, 1)
STUDY = "chest [red]\u202e"
Fedward = Callable[..., Any]


@pytest.fixture(autouse=True)
def _flower(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setenv("COLUMNS", "140")
    return


def _leave(state: Path, rounds: tuple[int, ...], remark: str = "", charged: bool = True) -> None:
    """Enrolment, replies to `rounds`, and a refusal leave."""
    gate, asked = Gate(state / LOG), Message(RecordDict(), 100, "train")
    profile = canonical_json({"name": "north", "num_examples": 590})
    enrolment = RecordDict({CONFIG: ConfigRecord({"profile": profile})})
    gate.release("enrol", enrolment, Message(RecordDict(), 100, "query"), ())
    budget = Registry(state / "budget").budget("chest")
    for number in rounds:
        charge = budget.charge(STUDY, number, f"{number:064x}", STEP) if charged else None
        reply = TrainReply(STUDY, number, "north", 590, "int8", np.zeros(1000, np.uint8), "")
        gate.release("train", reply.to_records(), asked, () if charge is None else (charge,), remark)
    gate.refuse(BudgetRefused("None is left."), asked)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    registry = Registry(tmp_path / "budget")
    images = np.random.default_rng(0).integers(0, 256, (9, 64), dtype=np.uint8)
    registry.import_dataset("chest", registry.identity.digests(images), total_epsilon=3.0, delta=DELTA)
    return tmp_path


def _json(fedward: Fedward, state: Path, *arguments: object) -> dict[str, Any]:
    done = fedward("hospital", "egress", "--state", state, "--json", *arguments)
    assert (done.code, done.err) == (0, "")
    return dict(json.loads(done.out))


def _measured(state: Path, *parts: str) -> None:
    """A measurement leaves."""
    budget, asked = Registry(state / "budget").budget("chest"), Message(RecordDict(), 100, "query.measure")
    charges = [budget.charge(STUDY, 9, "9" * 64, MEASURING, kind=part) for part in parts]
    values = {part: np.zeros(40, np.int64) for part in parts}
    reply = MeasureReply(STUDY, 9, "north", 590, values, "")
    Gate(state / LOG).release("measure", reply.to_records(), asked, tuple(charges))


def test_a_measurement_is_listed_with_each_of_its_charges(fedward: Fedward, state: Path) -> None:
    _measured(state, "fisher", "metric")
    found = _json(fedward, state)
    (message,) = found["messages"]
    assert [charge["kind"] for charge in message["charges"]] == ["fisher", "metric"]
    assert found["totals"]["measured"] == {"metric": 1, "fisher": 1}
    (cost,) = found["costs"]
    assert (cost["replies"], cost["charges"]) == (1, 1)
    assert cost["epsilon"] == pytest.approx(epsilon([MEASURING, MEASURING], DELTA))
    output = fedward("hospital", "egress", "--state", state).out
    assert output.count("charged 1 step at noise 9 and rate 1") == 2


def test_the_explanation_of_a_measurement_takes_back_no_more_than_left(fedward: Fedward, state: Path) -> None:
    _measured(state, "fisher")
    text = _explained(fedward, state)
    assert "What matters in the model (1 answer)" in text
    assert "no result of the model on your images" in text
    _measured(state, "fisher", "metric")
    text = _explained(fedward, state)
    assert "Check of the finished model (1 answer)" in text
    assert "only the noised counts named above" in text
    assert "no result of the model on your images" not in text
    assert not [word for word in JARGON if word.lower() in text.lower()]


def test_json_holds_every_message_and_sums_that_add_up(fedward: Fedward, state: Path) -> None:
    _leave(state, (1, 2, 2))
    found = _json(fedward, state)
    assert [message["message"] for message in found["messages"]] == [
        "enrol", "train", "train", "train", "refusal",
    ]  # fmt: skip
    totals = found["totals"]
    sizes = [message["bytes"] for message in found["messages"]]
    assert totals["messages"] == 5
    assert totals["bytes"] == sum(sizes)
    assert totals["by_message"]["train"] == {"messages": 3, "bytes": sum(sizes[1:4])}
    for message in found["messages"]:
        assert sum(field["bytes"] for field in message["fields"]) == message["bytes"]
        assert all(field["why"] and len(field["sha256"]) == 64 for field in message["fields"])
    assert set(totals["by_class"]) == {PUBLIC, DP, CONSENTED}
    assert sum(row["bytes"] for row in totals["by_class"].values()) == totals["bytes"]
    assert totals["refusals"] == {"BudgetRefused": 1}


def test_what_is_sent_again_costs_nothing(fedward: Fedward, state: Path) -> None:
    _leave(state, (1, 2, 2))
    (cost,) = _json(fedward, state)["costs"]
    assert (cost["study"], cost["replies"], cost["charges"]) == (STUDY, 3, 2)
    assert cost["epsilon"] == epsilon([Mechanism(2.1, 0.109, 6)], DELTA)
    assert (cost["delta"], cost["total"]) == (DELTA, 3.0)


def test_last_shows_fewer_and_sums_all(fedward: Fedward, state: Path) -> None:
    _leave(state, (1, 2))
    found = _json(fedward, state, "--last", 1)
    assert [message["message"] for message in found["messages"]] == ["refusal"]
    assert found["totals"]["messages"] == 4
    assert len(_json(fedward, state, "--last", 100)["messages"]) == 4
    output = fedward("hospital", "egress", "--state", state, "--last", 1).out
    assert "Not shown: 3 earlier messages" in output


def test_the_tables_are_for_a_person(fedward: Fedward, state: Path) -> None:
    _leave(state, (1, 2))
    output = fedward("hospital", "egress", "--state", state, "--last", 9).out
    for part in (
        "enrolment: ", "reply to a round 2 of chest [red]", "refusal BudgetRefused", "update.latents", "dp",
        "consented", "charged 3 steps at noise 2.1 and rate 0.109", "nothing charged",
        "All that left, by class", "All that left, by message", "rounded up to tens",
        "with noise that hides any one image",
    ):  # fmt: skip
        assert part in output
    assert "\u202e" not in output


def _explained(fedward: Fedward, state: Path) -> str:
    done = fedward("hospital", "egress", "--state", state, "--explain")
    assert (done.code, done.err) == (0, "")
    return " ".join(done.out.split())


JARGON = (
    "sigma", "gradient", "DP-SGD", "latent", "payload", "digest", "hash", "ledger entry", "noise multiplier",
    "sample rate", "codec", "mechanism", "RDP", "PRV", "tensor", "JSON",
)  # fmt: skip


def test_the_explanation_says_what_left_what_it_cost_and_what_did_not_leave(
    fedward: Fedward, state: Path
) -> None:
    _leave(state, (1, 2, 2))
    text = _explained(fedward, state)
    figure = epsilon([Mechanism(2.1, 0.109, 6)], DELTA)
    for part in (
        "sent 5 messages", "Enrolment (1 time)", "Training (3 answers)", "random noise",
        f"2 answers cost epsilon {figure:.2f} of the 3", f"a factor of at most {np.exp(figure):,.1f}",
        "1 in 100,000", "1 answer of these left again", "BudgetRefused (1)", "What did not leave: no image",
        "name", "accuracy", "when an answer arrived",
    ):  # fmt: skip
        assert part in text
    assert not [word for word in JARGON if word.lower() in text.lower()]
    assert "Held back" not in text
    assert "WITHOUT" not in text
    assert "seed" not in text


def test_noise_from_a_seed_is_not_called_protection(fedward: Fedward, state: Path) -> None:
    _leave(state, (1,), SEEDED)
    assert "protects nobody" in _explained(fedward, state)


def test_a_simulation_without_privacy_is_said_to_be_one(fedward: Fedward, state: Path) -> None:
    _leave(state, (1, 2), WAIVED, charged=False)
    text = _explained(fedward, state)
    assert "2 answers left WITHOUT noise" in text
    assert "Training (" not in text
    assert "epsilon" not in text
    assert set(_json(fedward, state)["totals"]["by_class"]) == {PUBLIC, CONSENTED}


def test_what_was_held_back_is_told(fedward: Fedward, state: Path) -> None:
    _leave(state, (1,))
    reply = TrainReply(STUDY, 9, "north", 590, "int8", np.zeros(10, np.uint8))
    with pytest.raises(EgressRefused):
        Gate(state / LOG).release("train", reply.to_records(), Message(RecordDict(), 100, "train"), ())
    assert "1 message would have carried something" in _explained(fedward, state)
    assert _json(fedward, state)["held"][0]["message"] == "train"


def test_a_charge_that_the_budgets_ledger_lacks_is_told(fedward: Fedward, state: Path) -> None:
    _leave(state, (1,))
    (ledger,) = state.glob("budget/*/ledger.jsonl")
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    ledger.with_name("ledger.jsonl.head").unlink()
    assert _json(fedward, state)["costs"][0]["epsilon"] is None
    assert "compare it with its newest copy" in _explained(fedward, state)


def test_an_empty_log_says_so(fedward: Fedward, state: Path) -> None:
    Gate(state / LOG)
    assert "Nothing has left" in _explained(fedward, state)
    assert _json(fedward, state)["totals"]["messages"] == 0
    assert fedward("hospital", "egress", "--state", state).code == 0


def test_a_folder_without_a_log_and_a_damaged_log_are_refused_by_name(fedward: Fedward, state: Path) -> None:
    done = fedward("hospital", "egress", "--state", state)
    assert (done.code, done.err.partition(":")[0]) == (1, LedgerRefused.__name__)
    assert not (state / "egress").exists()
    _leave(state, (1,))
    (state / LOG).write_bytes((state / LOG).read_bytes().replace(b'"class":"dp"', b'"class":"public"'))
    done = fedward("hospital", "egress", "--state", state)
    assert (done.code, done.err.partition(":")[0]) == (1, LedgerRefused.__name__)
    assert "line 3" in done.err
