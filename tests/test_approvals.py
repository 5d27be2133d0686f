"""Through the hospital and its commands: what the policy forbids costs nothing, and a new study waits."""

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client import hospital as hospital_module
from fedward.client.approvals import MOST_ASKED, STUDIES_FILE, Studies
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.policy import settings_digest
from fedward.client.policy_file import POLICY_FILE
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import ApprovalMissing, LedgerRefused, PolicyRefused, UnknownName
from fedward.common.messages import LATENTS, TrainRequest
from fedward.common.models import build_student, parameter_count

DELTA = 1e-5
Ask = Callable[..., TrainRequest]
Fedward = Callable[..., Any]


@pytest.fixture
def site(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:20], phantom.train.labels[:20])
    create_hospital(tmp_path / "site", "north", records, 50.0, DELTA, None)
    return tmp_path / "site"


@pytest.fixture
def ask(make_local: Callable[..., LocalSettings]) -> Ask:
    packed = encode(np.zeros(parameter_count(build_student(make_local().spec)), np.float32), "fp32")

    def make(study: str = "chest", server_round: int = 1, **changes: Any) -> TrainRequest:
        vectors = {LATENTS: packed}
        return TrainRequest(study, server_round, make_local(**changes), 0.5, ("fp32", "fp32"), vectors)

    return make


def policy(site: Path, text: str) -> None:
    (site / POLICY_FILE).write_text(text)


def state_of(site: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in site.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("min_noise_multiplier = 4.1", "min_noise_multiplier"),
        ("max_study_epsilon = 0.1", "max_study_epsilon"),
        ("students = ['ternary-cnn']", "students"),
        ("consented_fields = ['reply.hospital']", "consented_fields"),
    ],
)
def test_what_a_rule_forbids_computes_charges_and_keeps_nothing(
    site: Path, ask: Ask, text: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(site)
    policy(site, text)  # takes effect without a restart
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    before = state_of(site)
    with pytest.raises(PolicyRefused, match=f"rule {rule}"):
        hospital.answer(ask())
    after = state_of(site)
    assert {name for name in set(after) - set(before) if not name.endswith(".lock")} == set()
    assert {name: after[name] for name in before} == before


def test_a_stored_reply_still_comes_back_when_a_rule_was_tightened(site: Path, ask: Ask) -> None:
    first = Hospital(site).answer(ask())
    policy(site, "min_noise_multiplier = 100.0")
    assert Hospital(site).answer(ask()).to_bytes() == first.to_bytes()
    with pytest.raises(PolicyRefused):
        Hospital(site).answer(ask(server_round=2))


def test_studies_at_once_are_those_with_a_plan_that_is_open(site: Path, ask: Ask) -> None:
    policy(site, "max_studies = 1")
    hospital = Hospital(site)
    hospital.answer(ask("a", rounds=1))  # its only round: it has ended
    hospital.answer(ask("b"))
    with pytest.raises(PolicyRefused, match="rule max_studies is 1"):
        hospital.answer(ask("c"))
    hospital.answer(ask("b", 2))


def test_a_policy_with_a_slip_answers_nothing_and_tells_nobody_what_stands_in_it(
    site: Path, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    policy(site, "Mrs_Miller = 3")
    hospital = Hospital(site)
    for call in (lambda: hospital.answer(ask()), lambda: hospital.enrolment):
        with pytest.raises(PolicyRefused, match="cannot be read") as caught:
            call()
        assert "Miller" not in str(caught.value)
        assert str(site) not in str(caught.value)
    assert [record.fields for record in caplog.records] == [{"refusal": "PolicyRefused"}] * 2
    assert "Miller" not in caplog.text


def test_a_name_that_may_not_leave_does_not_enrol(site: Path) -> None:
    policy(site, "consented_fields = ['profile.num_examples']")
    with pytest.raises(PolicyRefused, match=r"profile\.name"):
        _ = Hospital(site).enrolment


def test_a_new_study_waits_and_goes_on_once_it_is_approved(site: Path, ask: Ask, fedward: Fedward) -> None:
    policy(site, "approval = true")
    hospital = Hospital(site)
    for _ in range(3):
        with pytest.raises(ApprovalMissing):
            hospital.answer(ask())
    listed = json.loads(fedward("hospital", "studies", "--state", site, "--json").out)
    assert (listed["schema"], listed["approval"]) == (1, True)
    (waiting,) = listed["studies"]
    assert (waiting["study"], waiting["approved"]) == ("chest", False)
    assert waiting["digest"] == settings_digest(ask())
    assert 0 < waiting["round_epsilon"] < waiting["study_epsilon"]
    done = fedward("hospital", "approve", "chest", "--state", site)
    assert (done.code, done.err) == (0, "")
    assert (
        f"Study chest is approved with the settings {waiting['digest'][:12]}: fp32-cnn, 3 rounds" in done.out
    )
    hospital.answer(ask())
    hospital.answer(ask(server_round=2))
    with pytest.raises(ApprovalMissing, match="other settings"):
        hospital.answer(ask(server_round=3, views=2))
    assert fedward("hospital", "approve", "chest", "--state", site, "--withdraw").code == 0
    with pytest.raises(ApprovalMissing):
        hospital.answer(ask(server_round=3))


def test_a_study_asked_for_with_several_settings_is_approved_by_digest(
    site: Path, ask: Ask, fedward: Fedward
) -> None:
    policy(site, "approval = true")
    hospital, both = Hospital(site), [ask(), ask(views=2)]
    for request in both:
        with pytest.raises(ApprovalMissing):
            hospital.answer(request)
    done = fedward("hospital", "approve", "chest", "--state", site)
    assert (done.code, done.err.startswith("UnknownName: Study chest was asked for with several")) == (
        1,
        True,
    )
    chosen = settings_digest(both[1])
    found = fedward("hospital", "approve", "chest", "--settings", chosen[:12], "--state", site, "--json")
    assert json.loads(found.out)["digest"] == chosen
    hospital.answer(both[1])
    with pytest.raises(ApprovalMissing):
        hospital.answer(ask(server_round=2))


def test_the_list_is_for_people(site: Path, ask: Ask, fedward: Fedward) -> None:
    empty = fedward("hospital", "studies", "--state", site)
    assert "needs no approval" in empty.out
    assert "No study waits" in empty.out
    policy(site, "approval = true")
    for name in ("chest", "ch\u0435st", "[red]x"):  # the second with a Cyrillic letter
        with pytest.raises(ApprovalMissing):
            Hospital(site).answer(ask(name))
    out = fedward("hospital", "studies", "--state", site).out
    assert "waits for approval" in out
    assert settings_digest(ask())[:12] in out
    assert "#" in out  # what may look like another is marked
    policy(site, "approvals = true")
    broken = fedward("hospital", "studies", "--state", site)
    assert (broken.code, "unknown key 'approvals'" in broken.err) == (1, True)


def test_an_unknown_study_cannot_be_approved_or_withdrawn(site: Path, fedward: Fedward) -> None:
    for options in ((), ("--withdraw",)):
        done = fedward("hospital", "approve", "chest", "--state", site, *options)
        assert (done.code, done.err) == (
            1,
            "UnknownName: There is no such study chest; there are: none.\n",
        )
    assert not (site / STUDIES_FILE).exists()


def test_a_coordinator_cannot_fill_the_disk_with_names(tmp_path: Path, ask: Ask) -> None:
    studies, request = Studies(tmp_path), ask()
    now = datetime.now(UTC)
    studies.note(request, now)
    studies.approve("chest")
    for index in range(MOST_ASKED + 5):
        studies.note(dataclasses.replace(request, study=f"s{index}"), now)
    asked = [one["study"] for one in studies.listed()["asked"]]
    assert asked == [f"s{index}" for index in range(5, MOST_ASKED + 5)]
    assert set(studies.approved()) == {"chest"}


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"approved":[{}],"asked":[],"schema":"fedward.studies/1"}']
)
def test_a_damaged_list_approves_nothing(site: Path, ask: Ask, text: str) -> None:
    policy(site, "approval = true")
    (site / STUDIES_FILE).write_text(text)
    with pytest.raises(LedgerRefused, match="damaged"):
        Hospital(site).answer(ask())
    with pytest.raises(LedgerRefused, match="damaged"):
        Studies(site).approve("chest")


def test_approving_again_with_other_settings_takes_the_place_of_the_first(tmp_path: Path, ask: Ask) -> None:
    studies = Studies(tmp_path)
    now = datetime.now(UTC)
    for request in (ask(), ask(views=2)):
        studies.note(request, now)
        studies.approve("chest")
    assert studies.approved() == {"chest": settings_digest(ask(views=2))}
    assert len(studies.listed()["approved"]) == 1
    with pytest.raises(UnknownName):
        studies.approve("chest")


def test_whoever_approves_is_told_of_pruned_channels_and_fewer_bits(
    site: Path, ask: Ask, fedward: Callable[..., Any]
) -> None:
    studies, now = Studies(site), datetime.now(UTC)
    studies.note(ask("whole", student="int8-cnn"), now)
    studies.note(ask("less", student="int8-cnn", widths=(8, 8, 8), bits=(8, 8, 8, 2)), now)
    said = {name: fedward("hospital", "approve", name, "--state", site).out for name in ("whole", "less")}
    assert "int8-cnn, " in said["whole"]
    assert "int8-cnn pruned with fewer bits, " in said["less"]
