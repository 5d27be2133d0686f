"""Whatever a coordinator asks, what it gets is an update that was charged, or a refusal that cost nothing."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fedward.client import hospital as hospital_module
from fedward.client.app import app
from fedward.client.hospital import Hospital, create_hospital, open_hospital
from fedward.common.chain import Head
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import LedgerRefused
from fedward.common.files import canonical_json
from fedward.common.logs import JsonLines
from fedward.common.messages import CONFIG, LATENTS, TrainRequest, refusal_text
from fedward.common.models import build_student, parameter_count
from fedward.common.thin_app import STUDY_FOLDER

DELTA = 1e-5
Ask = Callable[..., RecordDict]
Send = Callable[[RecordDict], Message]


pytestmark = pytest.mark.usefixtures("flower_node")


@pytest.fixture
def site(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:20], phantom.train.labels[:20])
    create_hospital(tmp_path / "hospitals" / "0", "north", records, 5.0, DELTA, None)
    return tmp_path / "hospitals" / "0"


@pytest.fixture
def send(tmp_path: Path, site: Path) -> Send:
    def call(content: RecordDict) -> Message:
        context = Context(1, 100, {"partition-id": 0}, RecordDict(), {STUDY_FOLDER: str(tmp_path)})
        return app(Message(content, 100, "train"), context)

    return call


@pytest.fixture
def ask(make_local: Callable[..., LocalSettings]) -> Ask:
    """ask(server_round, header={...}, **settings) -> a message, whatever its values are."""
    local = make_local()
    packed = encode(np.zeros(parameter_count(build_student(local.spec)), np.float32), "fp32")

    def make(server_round: Any = 1, header: dict[str, Any] | None = None, **changes: Any) -> RecordDict:
        content = TrainRequest("study", 1, local, 0.5, ("fp32", "fp32"), {LATENTS: packed}).to_records()
        asked = json.loads(content.config_records[CONFIG]["request"])  # type: ignore[arg-type]
        asked["settings"] |= changes
        asked |= {"round": server_round} | (header or {})
        content.config_records[CONFIG]["request"] = canonical_json(asked)
        return content

    return make


@pytest.fixture
def never_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))


def _state(site: Path) -> dict[str, bytes]:
    """All that a request could have changed, the log of what left aside."""
    return {
        str(path): path.read_bytes()
        for path in site.rglob("*")
        if path.is_file() and path.parent.name != "egress" and path.suffix != ".lock"
    }


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no noise": ({"noise_multiplier": 0.0}, "RequestRefused: The study asks for training without noise"),
    "less than no noise": ({"noise_multiplier": -1.0}, "SettingRefused: noise_multiplier must be a number"),
    "noise of no use": ({"noise_multiplier": 1e-9}, "BudgetRefused: .* Ask for fewer steps or more noise"),
    "a rate above 1": ({"sample_rate": 1.5}, "SettingRefused: sample_rate must be a number from 1e-06 to 1,"),
    "a clip of 1e9": ({"max_grad_norm": 1e9}, "SettingRefused: max_grad_norm must be a number from"),
    "a million steps a round": ({"local_steps": 10**6}, "SettingRefused: local_steps must be a whole number"),
    "a million rounds": ({"rounds": 10**6}, "SettingRefused: rounds must be a whole number from 1 to 100000"),
    "steps without end": (
        {"local_steps": 1000, "rounds": 100_000},
        "BudgetRefused: .* for 100000000 steps .* so 5 is left",
    ),
    "a student with BatchNorm": ({"student": "batchnorm-cnn"}, "SettingRefused: student must be one of "),
    "another delta": ({"target_delta": 1e-2}, "BudgetRefused: The study's delta is 0.01"),
    "a patient as the unit": ({"unit": "patient"}, "SettingRefused: unit must be one of image"),
    "round 0": ({"server_round": 0}, "SettingRefused: A message's field round must be from 1 to 3"),
    "a round after the last": ({"server_round": 4}, "SettingRefused: A message's field round must be from 1"),
    "half a round": ({"server_round": 1.5}, "PayloadRefused: A message's field round is not of type int"),
    "a name that hides": ({"header": {"study": "\u202ex"}}, "SettingRefused: A message's study must be"),
    "a step of any size": ({"header": {"learning_rate": 1e30}}, "SettingRefused: .* learning_rate must be"),
}


@pytest.mark.usefixtures("never_trains")
@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_request_is_refused_in_a_sentence_and_leaves_nothing_behind(
    send: Send, ask: Ask, site: Path, case: str
) -> None:
    changes, sentence = REFUSED[case]
    Hospital(site)
    before = _state(site)
    reply = send(ask(**changes))
    assert reply.has_error()
    kind, _, words = sentence.partition(": ")
    name, said = refusal_text(reply)
    assert (name, re.match(words, said) is not None) == (kind, True), said
    assert _state(site) == before


@pytest.mark.parametrize(
    "change",
    [{"sample_rate": 0.5}, {"noise_multiplier": 5.0}, {"local_steps": 2}, {"rounds": 5}],
    ids=lambda change: next(iter(change)),
)
def test_a_later_round_asks_as_the_first_did(
    send: Send, ask: Ask, site: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    assert send(ask(1)).has_content()
    before = _state(site)
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    name, sentence = refusal_text(send(ask(2, **change)))
    assert name == "RequestRefused"
    assert sentence.endswith("its plan is frozen with its first round. Ask as before, or under a new name.")
    assert _state(site) == before


def test_rounds_out_of_order_are_charged_each_and_none_after_the_last(
    send: Send, ask: Ask, site: Path
) -> None:
    first = send(ask(2))
    assert send(ask(1)).has_content()
    assert send(ask(2)).content == first.content  # asked again: the stored reply
    assert send(ask(3)).has_content()
    budget = Hospital(site).budget
    assert budget is not None
    assert sum(mechanism.steps for mechanism in budget.mechanisms()) == 3
    before = _state(site)
    assert refusal_text(send(ask(3, header={"learning_rate": 0.25})))[0] == "RequestRefused"
    assert send(ask(1)).has_content()
    assert [*_state(site)] == [*before]


def test_hundreds_of_refused_requests_do_not_fill_the_disk(send: Send, ask: Ask, site: Path) -> None:
    """Neither files nor lines: those that a person needs are few."""
    for number in range(400):
        send(ask(noise_multiplier=0.0, header={"learning_rate": 1.0 + number}))
    files = [path for path in site.rglob("*") if path.is_file()]
    assert len(files) < 300  # of which 256 empty locks
    assert sum(path.stat().st_size for path in files) < 200_000


@pytest.mark.usefixtures("never_trains")
def test_a_suspended_hospital_keeps_no_key_of_what_it_refuses(send: Send, ask: Ask, site: Path) -> None:
    hospital = Hospital(site)
    assert hospital.budget is not None
    with pytest.raises(LedgerRefused):
        hospital.budget.require_anchor(Head(99, "0" * 64))
    for number in range(5):
        assert refusal_text(send(ask(header={"learning_rate": 1.0 + number})))[0] == "LedgerRefused"
    assert os.listdir(site / "keys") == []


@pytest.mark.usefixtures("never_trains")
def test_a_profile_that_lost_its_budget_trains_on_nothing(send: Send, ask: Ask, site: Path) -> None:
    """A careless hand made the folder a simulation without privacy; its images have a budget."""
    profile = json.loads((site / "hospital.json").read_bytes())
    (site / "hospital.json").write_bytes(canonical_json(profile | {"budget": None, "seed": 0}))
    with pytest.raises(
        LedgerRefused, match=r"holds a privacy budget that its hospital\.json knows nothing of"
    ):
        Hospital(site)
    assert refusal_text(send(ask(noise_multiplier=0.0))) == (
        "LedgerRefused",
        "The hospital cannot answer; see its own log.",
    )


# A ledger that somebody laid hands on


def _flipped(ledger: Path) -> None:
    ledger.write_bytes(ledger.read_bytes().replace(b'"steps":1', b'"steps":0'))


def _without(line: int) -> Callable[[Path], None]:
    def damage(ledger: Path) -> None:
        lines = ledger.read_bytes().splitlines(keepends=True)
        ledger.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))

    return damage


def _cut(ledger: Path) -> None:
    ledger.write_bytes(ledger.read_bytes()[:-100])


def _without_its_tail(ledger: Path) -> None:
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))


def _with_another_head(ledger: Path) -> None:
    ledger.with_name("ledger.jsonl.head").write_bytes(f"{4:020d} {'ab' * 32}\n".encode())


LEDGERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte flipped": (_flipped, r"line 5: it was altered"),
    "a line missing": (_without(3), r"line 4: .* lines are missing, or from another ledger"),
    "its tail cut within a line": (_cut, r"lacks line \d+, which was acknowledged: its tail was cut"),
    "its last line cut": (_without_its_tail, r"lacks line \d+, which was acknowledged: its tail was cut"),
    "another hospital's head": (_with_another_head, r"lacks line 5, .* or it is another ledger"),
}


def logged(records: list[logging.LogRecord]) -> str:
    """As it stands in the hospital's own log."""
    return "\n".join(map(JsonLines().format, records))


@pytest.mark.parametrize("case", LEDGERS)
def test_a_ledger_that_does_not_verify_stops_all_work_and_says_why_at_home_only(
    send: Send,
    ask: Ask,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    case: str,
) -> None:
    assert send(ask(1)).has_content()
    damage, sentence = LEDGERS[case]
    (ledger,) = site.glob("budget/*/ledger.jsonl")
    damage(ledger)
    open_hospital.cache_clear()
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    for number in (1, 2):
        assert refusal_text(send(ask(number))) == (
            "LedgerRefused",
            "The hospital cannot answer; see its own log.",
        )
    assert re.search(sentence, logged(caplog.records)), caplog.records


@pytest.mark.usefixtures("never_trains")
def test_a_disk_that_fills_in_the_middle_of_a_charge_spends_nothing_and_trains_nothing(
    send: Send, ask: Ask, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        is_ledger = os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(site / "budget"))
        return write(descriptor, data[:40] if is_ledger and b'"charge"' in data else data)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", full)
        assert refusal_text(send(ask()))[0] == "LedgerRefused"
    assert "nothing was entered, so nothing may start: make room and ask again" in logged(caplog.records)
    budget = Hospital(site).budget
    assert budget is not None
    assert budget.spent() == 0.0
    assert budget.find("study", 1) is None
