"""One reply a round, and one plan a study, whatever a coordinator asks and whoever else answers."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client import hospital as hospital_module
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.training import train
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import BudgetRefused, RequestRefused
from fedward.common.messages import LATENTS, TrainRequest
from fedward.common.models import build_student, parameter_count
from fedward.common.privacy import Mechanism

DELTA = 1e-5
Ask = Callable[..., TrainRequest]


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def make_site(tmp_path: Path, phantom: ImageDataset) -> Callable[..., Path]:
    """make_site(budget, seed) -> a state folder."""

    def make(budget: float = 50.0, seed: int | None = None) -> Path:
        records = Split(phantom.train.images[:20], phantom.train.labels[:20])
        create_hospital(tmp_path / "site", "north", records, budget, DELTA, seed)
        return tmp_path / "site"

    return make


@pytest.fixture
def ask(make_local: Callable[..., LocalSettings]) -> Ask:
    def make(server_round: int = 1, study: str = "study", rate: float = 0.5, **changes: Any) -> TrainRequest:
        local = make_local(**changes)
        packed = encode(np.zeros(parameter_count(build_student(local.spec)), np.float32), "fp32")
        return TrainRequest(study, server_round, local, rate, ("fp32", "fp32"), {LATENTS: packed})

    return make


def _kinds(hospital: Hospital) -> list[str]:
    assert hospital.budget is not None
    return [entry.kind for entry in hospital.budget.ledger.entries]


def _reserved(hospital: Hospital) -> int:
    assert hospital.budget is not None
    return sum(steps for plan in hospital.budget.state.reserved.values() for steps in plan.values())


@pytest.mark.parametrize("seed", [None, 7])
def test_two_daemons_that_race_send_one_reply_and_spend_once(
    make_site: Callable[..., Path], ask: Ask, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    folder, sent, trained = make_site(seed=seed), [], []

    def slowly(*args: Any) -> Any:
        trained.append(1)
        time.sleep(0.2)  # long enough for the other to come
        return train(*args)

    monkeypatch.setattr(hospital_module, "train", slowly)
    hospitals = [Hospital(folder) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda own=own: sent.append(own.answer(ask()).to_bytes()))
        for own in hospitals
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 2
    assert len(set(sent)) == len(trained) == 1
    assert _kinds(Hospital(folder)).count("charge") == 1
    assert Hospital(folder).answer(ask()).to_bytes() == sent[0]


def test_what_leaves_is_what_was_stored_not_what_was_computed(
    make_site: Callable[..., Path], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process stored its reply a moment before."""
    hospital = Hospital(make_site(seed=7))
    other = dataclasses.replace(hospital.answer(ask(1)), server_round=2)
    store = hospital._replies.store
    monkeypatch.setattr(
        hospital._replies,
        "store",
        lambda study, number, digest, reply, kind: store(study, number, digest, other.to_bytes(), kind),
    )
    assert hospital.answer(ask(2)).to_bytes() == other.to_bytes()


def test_a_round_that_is_run_again_after_a_crash_gives_the_whole_reply_again(
    make_site: Callable[..., Path], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the anchor, though the ledger has grown since by another study's round."""
    folder, computed = make_site(), []

    def crash(study: str, number: int, digest: str, reply: bytes, kind: str) -> bytes:
        computed.append(reply)
        raise Crash

    hospital = Hospital(folder)
    with monkeypatch.context() as patched:
        patched.setattr(hospital._replies, "store", crash)
        with pytest.raises(Crash):
            hospital.answer(ask())
    Hospital(folder).answer(ask(study="another"))
    assert Hospital(folder).answer(ask()).to_bytes() == computed[0]


def test_other_content_for_an_answered_round_is_logged_in_the_budgets_ledger(
    make_site: Callable[..., Path], ask: Ask
) -> None:
    hospital = Hospital(make_site())
    hospital.answer(ask())
    for _ in range(2):
        with pytest.raises(RequestRefused, match="other content"):
            hospital.answer(ask(rate=0.25))
    assert _kinds(hospital).count("refused") == 2
    assert _kinds(hospital).count("charge") == 1


@pytest.mark.parametrize(
    "change",
    [{"rounds": 4}, {"rounds": 100_000}, {"local_steps": 2}, {"noise_multiplier": 5.0}, {"sample_rate": 0.5}],
)
def test_a_studys_plan_is_frozen_with_its_first_round(
    make_site: Callable[..., Path], ask: Ask, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    hospital = Hospital(make_site())
    hospital.answer(ask(1))
    before = _kinds(hospital)
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    with pytest.raises(RequestRefused, match="frozen"):
        hospital.answer(ask(2, **change))
    assert _kinds(hospital) == before
    assert _reserved(hospital) == 2


def test_a_plan_that_does_not_fit_freezes_nothing(make_site: Callable[..., Path], ask: Ask) -> None:
    hospital = Hospital(make_site(budget=1.0))
    with pytest.raises(BudgetRefused):
        hospital.answer(ask(1, rounds=1000))
    assert hospital.answer(ask(1)).server_round == 1


def test_the_last_answer_gives_back_what_is_left_of_the_plan_and_closes_the_study(
    make_site: Callable[..., Path], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2 was missed: its steps are for other studies now, and nothing more is charged to this one."""
    hospital = Hospital(make_site())
    hospital.answer(ask(1))
    last = hospital.answer(ask(3))
    assert _reserved(hospital) == 0
    assert hospital.budget is not None
    assert hospital.budget.planned() == hospital.budget.spent()
    before = _kinds(hospital)
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    for request in (ask(2), ask(4, rounds=5), ask(1, rounds=1, local_steps=7)):
        with pytest.raises(RequestRefused):
            hospital.answer(request)
    assert [kind for kind in _kinds(hospital) if kind != "refused"] == before
    assert hospital.answer(ask(3)).to_bytes() == last.to_bytes()


def test_a_crash_between_store_and_release_is_made_good_when_asked_again(
    make_site: Callable[..., Path], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(study: str) -> None:
        raise Crash

    hospital = Hospital(make_site())
    hospital.answer(ask(1))
    assert hospital.budget is not None
    with monkeypatch.context() as patched:
        patched.setattr(hospital.budget, "release", crash)
        with pytest.raises(Crash):
            hospital.answer(ask(3))
    assert _reserved(hospital) == 1
    hospital.answer(ask(3))
    assert _reserved(hospital) == 0


def test_a_round_that_crashed_before_the_study_was_closed_may_still_be_run(
    make_site: Callable[..., Path], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its charge stands, so its answer costs nothing more."""
    hospital = Hospital(make_site())

    def crash(*args: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "train", crash)
        with pytest.raises(Crash):
            hospital.answer(ask(2))
    hospital.answer(ask(3))
    hospital.answer(ask(2))
    assert hospital.budget is not None
    assert hospital.budget.mechanisms() == (Mechanism(4.0, 0.25, 2),)
