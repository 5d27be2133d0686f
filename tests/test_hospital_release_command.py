"""`fedward hospital release` gives up what a study that will never finish holds of the budget, for good."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client import hospital as hospital_module
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.registry import Registry
from fedward.client.replicas import Replicas
from fedward.client.state_folder import REPLICAS
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import RequestRefused
from fedward.common.message_parts import Replica
from fedward.common.messages import LATENTS, TrainRequest
from fedward.common.models import build_student, parameter_count
from fedward.common.printing import unmistakable
from fedward.common.privacy import Mechanism, epsilon

DELTA = 1e-5
STEP = Mechanism(2.1, 0.109, 3)
Fedward = Callable[..., Any]
Ask = Callable[..., TrainRequest]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two data sets; study "long" planned 30 steps on the first and had three of them."""
    registry = Registry(tmp_path / "state" / "budget")
    for name in ("chest", "skin"):
        registry.import_dataset(name, [name[:1].encode() * 16], total_epsilon=3.0, delta=DELTA)
    budget = registry.budget("chest")
    budget.reserve("long", Mechanism(2.1, 0.109, 30))
    budget.charge("long", 1, "a" * 64, STEP)
    return tmp_path / "state"


@pytest.fixture
def site(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:20], phantom.train.labels[:20])
    create_hospital(tmp_path / "site", "north", records, 50.0, DELTA, None)
    return tmp_path / "site"


@pytest.fixture
def ask(make_local: Callable[..., LocalSettings]) -> Ask:
    local = make_local()
    packed = encode(np.zeros(parameter_count(build_student(local.spec)), np.float32), "fp32")
    return lambda number, study="study": TrainRequest(
        study, number, local, 0.5, ("fp32", "fp32"), {LATENTS: packed}
    )


def test_it_tells_what_came_free_and_other_studies_have_it(fedward: Fedward, state: Path) -> None:
    whole = Registry(state / "budget").budget("chest").planned()
    done = fedward("hospital", "release", "long", "--state", state)
    spent = epsilon([STEP], DELTA)
    assert (done.code, done.err) == (0, "")
    for part in (
        "chest: 27 steps at noise multiplier 2.1 and sample rate 0.109 came free",
        f"Of epsilon 3, {spent:.3f} is spent or reserved now, where {whole:.3f} was",
        "Later rounds of study long are refused",
    ):
        assert part in done.out
    assert "skin" not in done.out
    budget = Registry(state / "budget").budget("chest")
    assert (budget.planned(), budget.spent()) == (spent, spent)


def test_json_holds_the_same(fedward: Fedward, state: Path) -> None:
    found = json.loads(fedward("hospital", "release", "long", "--state", state, "--json").out)
    assert (found["schema"], found["study"]) == (1, "long")
    (chest,) = found["datasets"]
    assert chest["freed"] == [{"noise_multiplier": 2.1, "sample_rate": 0.109, "steps": 27}]
    assert chest["planned_before"] > chest["planned"] == chest["spent"] == epsilon([STEP], DELTA)


@pytest.mark.parametrize("study", ["lon", "LONG", "", "skin"])
def test_a_study_without_a_reservation_is_refused_by_name_and_nothing_changes(
    fedward: Fedward, state: Path, study: str
) -> None:
    before = Registry(state / "budget").budget("chest").ledger.head
    done = fedward("hospital", "release", study, "--state", state)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"UnknownName: Nothing is reserved for a study {study!r}; studies with a reservation: long.\n"
    )
    assert Registry(state / "budget").budget("chest").ledger.head == before


def test_a_second_time_there_is_nothing_to_give_up(fedward: Fedward, state: Path) -> None:
    fedward("hospital", "release", "long", "--state", state)
    done = fedward("hospital", "release", "long", "--state", state)
    assert (done.code, done.err.endswith("studies with a reservation: none.\n")) == (1, True)


def test_one_data_set_can_be_chosen(fedward: Fedward, state: Path) -> None:
    Registry(state / "budget").budget("skin").reserve("long", STEP)
    assert fedward("hospital", "release", "long", "--state", state, "--dataset", "skin").code == 0
    registry = Registry(state / "budget")
    assert "long" not in registry.budget("skin").state.reserved
    assert "long" in registry.budget("chest").state.reserved


def test_the_copies_of_the_given_up_study_s_model_go_and_other_studies_stay(
    fedward: Fedward, state: Path, ask: Ask
) -> None:
    replicas = Replicas(state / REPLICAS)
    for study in ("long", "other"):
        model = np.full(3, 1.0, np.float32)
        digest = hashlib.sha256(model.tobytes()).hexdigest()
        replicas.keep(replace(ask(1, study), replica=Replica(digest, "", {})), model)
    assert len(list(replicas.folder.iterdir())) == 2
    assert fedward("hospital", "release", "long", "--state", state).code == 0
    (left,) = replicas.folder.iterdir()
    replicas.forget("other")
    assert not left.exists()


def test_a_name_that_nobody_can_type_is_released_as_it_is_shown(fedward: Fedward, state: Path) -> None:
    budget = Registry(state / "budget").budget("chest")
    names = ("l\u043eng", "long\u202e", "long  ago")
    for name in names:
        budget.reserve(name, STEP)
    shown = fedward("hospital", "budget", "--state", state).out.replace(" ", "")
    for name in names:
        assert unmistakable(name).rpartition("#")[2] in shown
        assert fedward("hospital", "release", unmistakable(name), "--state", state).code == 0
    assert set(Registry(state / "budget").budget("chest").state.reserved) == {"long"}


def test_later_rounds_are_refused_and_an_answered_one_still_comes_back(
    fedward: Fedward, site: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Hospital(site).answer(ask(1))
    assert fedward("hospital", "release", "study", "--state", site).code == 0
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    with pytest.raises(RequestRefused, match="its plan was given up"):
        Hospital(site).answer(ask(2))
    assert Hospital(site).answer(ask(1)).to_bytes() == first.to_bytes()


def test_an_open_daemon_refuses_at_once(
    fedward: Fedward, site: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(site)
    hospital.answer(ask(1))
    fedward("hospital", "release", "study", "--state", site)
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    with pytest.raises(RequestRefused, match="its plan was given up"):
        hospital.answer(ask(2))


def test_a_study_that_was_given_up_before_its_first_charge_does_not_come_back(
    fedward: Fedward, site: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(site)
    assert hospital.budget is not None
    hospital.budget.reserve("study", Mechanism(4.0, 0.25, 3))
    fedward("hospital", "release", "study", "--state", site)
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    for opened in (hospital, Hospital(site)):
        with pytest.raises(RequestRefused, match="its plan was given up"):
            opened.answer(ask(1))


def test_no_state_folder_is_refused_and_none_is_made(fedward: Fedward, tmp_path: Path) -> None:
    done = fedward("hospital", "release", "study", "--state", tmp_path / "none")
    assert (done.code, done.err.partition(":")[0]) == (1, "LedgerRefused")
    assert not (tmp_path / "none").exists()
