"""The measurement behind the last round: planned in round 1, charged before the work, answered once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedward.client import hospital as hospital_module
from fedward.client.budget import Budget
from fedward.client.egress import Gate
from fedward.client.egress_log import LOG, LOG_HEAD
from fedward.client.hospital import Hospital, create_hospital
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import BudgetRefused, PayloadRefused, Refusal, RequestRefused, SettingRefused
from fedward.common.files import canonical_json
from fedward.common.measure_messages import MeasureReply, MeasureRequest
from fedward.common.measurement import measured_sizes
from fedward.common.messages import CONFIG, LATENTS, MODEL, TrainRequest
from fedward.common.models import build_student, parameter_count

DELTA, ROUNDS = 1e-5, 2
BOTH = {"metric_noise_multiplier": 6.0, "fisher_noise_multiplier": 7.0}
LocalMaker = Callable[..., LocalSettings]


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture(autouse=True)
def _flower() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def folder(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:17], phantom.train.labels[:17])
    create_hospital(tmp_path / "h", "hospital-0", records, 50.0, DELTA, None)
    return tmp_path / "h"


@pytest.fixture
def asked(make_local: LocalMaker) -> Callable[..., MeasureRequest]:
    """asked(fill=0.1, **settings) -> the measurement of a study of two rounds."""

    def make(fill: float = 0.1, **changes: Any) -> MeasureRequest:
        local = make_local(rounds=ROUNDS, **{**BOTH, **changes})
        latents = np.full(parameter_count(build_student(local.spec)), fill, np.float32)
        return MeasureRequest("study", local, encode(latents, "fp32"))

    return make


def _round(request: MeasureRequest, number: int) -> TrainRequest:
    """A round of the same study."""
    vectors = {LATENTS: request.latents}
    return TrainRequest(request.study, number, request.settings, 0.5, ("fp32", "fp32"), vectors)


def _entries(hospital: Hospital, *kinds: str) -> list[dict[str, Any]]:
    assert hospital.budget is not None
    return [dict(entry.body) for entry in hospital.budget.ledger.entries if entry.kind in kinds]


def _charged(hospital: Hospital) -> list[tuple[int, str]]:
    return [(body["round"], body["kind"]) for body in _entries(hospital, "charge")]


def _paid(hospital: Hospital) -> list[tuple[int, str]]:
    """The measurement's own charges."""
    return [charge for charge in _charged(hospital) if charge[1] != "dp-sgd"]


def _trained(folder: Path, request: MeasureRequest) -> Path:
    """The folder of a hospital that answered the study's first round."""
    Hospital(folder).answer(_round(request, 1))
    return folder


def _never_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hospital_module, "measure", lambda *args: pytest.fail("a record was read"))


def _crash(*given: object) -> None:
    raise Crash


def _refused(folder: Path, request: MeasureRequest, kind: type[Refusal], words: str) -> None:
    """With nothing charged and no key left."""
    before = _charged(Hospital(folder))
    with pytest.raises(kind, match=words):
        Hospital(folder).measure(request)
    assert _charged(Hospital(folder)) == before
    assert list((folder / "keys").iterdir()) == []


def test_a_whole_study_is_planned_with_its_first_round_and_given_up_after_the_measurement(
    folder: Path, asked: Callable[..., MeasureRequest]
) -> None:
    hospital, request = Hospital(folder), asked()
    hospital.answer(_round(request, 1))
    (plan,) = _entries(hospital, "reserved")
    assert sorted((m["noise_multiplier"], m["sample_rate"], m["steps"]) for m in plan["mechanisms"]) == [
        (4.0, 0.25, ROUNDS), (6.0, 1.0, 1), (7.0, 1.0, 1),
    ]  # fmt: skip
    hospital.answer(_round(request, 2))
    assert _entries(hospital, "released") == []
    hospital.measure(request)
    assert _entries(hospital, "released") == [{"study": "study"}]
    assert _charged(hospital) == [(1, "dp-sgd"), (2, "dp-sgd"), (3, "fisher"), (3, "metric")]


def test_a_study_that_measures_nothing_gives_up_its_plan_after_the_last_round(
    folder: Path, asked: Callable[..., MeasureRequest]
) -> None:
    plain = asked(metric_noise_multiplier=0.0, fisher_noise_multiplier=0.0)
    hospital = Hospital(folder)
    hospital.answer(_round(plain, 2))
    assert _entries(hospital, "released") == [{"study": "study"}]


@pytest.mark.parametrize("off", ["metric_noise_multiplier", "fisher_noise_multiplier"])
def test_one_part_alone_is_charged_alone(
    off: str, folder: Path, asked: Callable[..., MeasureRequest]
) -> None:
    request = asked(**{off: 0.0})
    hospital = Hospital(_trained(folder, request))
    reply = hospital.measure(request)
    assert {kind: len(values) for kind, values in reply.measured.items()} == measured_sizes(request.settings)
    assert [kind for _, kind in _paid(hospital)] == list(reply.measured)


def test_asked_again_it_sends_the_same_bytes_and_is_charged_once(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _trained(folder, asked())
    first = Hospital(folder).measure(asked()).to_bytes()
    _never_measures(monkeypatch)
    for _ in range(2):
        assert Hospital(folder).measure(asked()).to_bytes() == first
    assert _paid(Hospital(folder)) == [(3, "fisher"), (3, "metric")]
    assert list((folder / "keys").iterdir()) == []


@pytest.mark.parametrize("after", [0, 1, 2])
def test_after_a_crash_between_its_charges_or_before_its_reply_it_is_the_same(
    after: int, folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies once `after` charges are synced; with both, once the reply is computed."""
    _trained(folder, asked())
    computed, charge, made = [], Budget.charge, 0

    def dying(self: Budget, *given: Any, **more: Any) -> Any:
        nonlocal made
        if made == after:
            raise Crash
        made += 1
        return charge(self, *given, **more)

    def unstored(study: str, number: int, digest: str, reply: bytes, kind: str) -> bytes:
        computed.append(reply)
        raise Crash

    hospital = Hospital(folder)
    with monkeypatch.context() as patched:
        patched.setattr(Budget, "charge", dying)
        patched.setattr(hospital._replies, "store", unstored)
        with pytest.raises(Crash):
            hospital.measure(asked())
    key = [path.read_bytes() for path in (folder / "keys").iterdir()]
    reply = Hospital(folder).measure(asked())
    assert _paid(Hospital(folder)) == [(3, "fisher"), (3, "metric")]
    assert len(key) == 1
    assert [reply.to_bytes()] == computed or after < 2


def test_each_charge_that_is_run_again_after_a_crash_keeps_the_end_of_the_log_it_had(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What left between a crash and the next run must not make any of them another charge."""
    _trained(folder, asked())
    gate, charge, made = Gate(folder / LOG), Budget.charge, []

    def once(self: Budget, *given: Any, **more: Any) -> Any:
        if made:
            raise Crash
        made.append(charge(self, *given, **more))
        return made[0]

    def leave(reason: str) -> None:
        gate.refuse(RequestRefused(reason), Message(RecordDict(), 100, "query"))

    leave("Before the first.")
    for owner, name, crash in ((Budget, "charge", once), (hospital_module, "measure", _crash)):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, crash)
            with pytest.raises(Crash):
                Hospital(folder).measure(asked())
        leave(f"After a crash in {name}.")
    Hospital(folder).measure(asked())
    ends = {
        body["kind"]: body["extra"][LOG_HEAD]["entry"] for body in _entries(Hospital(folder), "charge")[1:]
    }
    assert ends == {"fisher": 1, "metric": 2}


def test_a_refusal_between_its_charges_leaves_the_key_that_the_first_was_made_for(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _trained(folder, asked())
    charge = Budget.charge

    def refusing(self: Budget, *given: Any, **more: Any) -> Any:
        if more["kind"] == "metric":
            raise BudgetRefused("None is left.")
        return charge(self, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Budget, "charge", refusing)
        with pytest.raises(BudgetRefused):
            Hospital(folder).measure(asked())
    assert _paid(Hospital(folder)) == [(3, "fisher")]
    Hospital(folder).measure(asked())
    assert _paid(Hospital(folder)) == [(3, "fisher"), (3, "metric")]


def test_a_charge_whose_key_is_gone_is_not_measured_again(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _trained(folder, asked())
    with monkeypatch.context() as patched:
        patched.setattr(hospital_module, "measure", lambda *args: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            Hospital(folder).measure(asked())
    for path in (folder / "keys").iterdir():
        path.unlink()
    _never_measures(monkeypatch)
    with pytest.raises(RequestRefused, match="key is gone"):
        Hospital(folder).measure(asked())


def test_other_content_is_refused_and_logged(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _trained(folder, asked())
    Hospital(folder).measure(asked())
    _never_measures(monkeypatch)
    _refused(folder, asked(fill=0.2), RequestRefused, "other content")
    assert len(_entries(Hospital(folder), "refused")) == 1


def test_a_study_whose_measurement_does_not_fit_is_refused_in_round_one(
    tmp_path: Path, phantom: ImageDataset, asked: Callable[..., MeasureRequest]
) -> None:
    create_hospital(tmp_path / "small", "h", phantom.train, 1.5, DELTA, None)
    hospital = Hospital(tmp_path / "small")
    with pytest.raises(BudgetRefused, match="would bring epsilon"):
        hospital.answer(_round(asked(fisher_noise_multiplier=0.5), 1))
    assert _charged(hospital) == []
    hospital.answer(_round(asked(metric_noise_multiplier=0.0, fisher_noise_multiplier=0.0), 1))


def test_a_measurement_that_the_first_round_did_not_plan_is_refused(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    Hospital(folder).answer(_round(asked(fisher_noise_multiplier=0.0), 1))
    _never_measures(monkeypatch)
    for other in (asked(), asked(metric_noise_multiplier=0.1, fisher_noise_multiplier=0.0)):
        _refused(folder, other, RequestRefused, "in no round with these settings")


def test_a_measurement_of_a_study_that_never_trained_here_is_refused(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a study could spend what nobody approved or planned, before its rounds or without any."""
    _never_measures(monkeypatch)
    _refused(folder, asked(), RequestRefused, "in no round with these settings")


def test_steps_of_one_noise_and_rate_do_not_pay_for_a_part_that_was_not_planned(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = {"noise_multiplier": 6.0, "sample_rate": 1.0}
    planned = asked(**alike, fisher_noise_multiplier=0.0)
    _trained(folder, planned)
    _never_measures(monkeypatch)
    _refused(folder, asked(**alike, fisher_noise_multiplier=6.0), RequestRefused, "with these settings")


def test_a_study_given_up_between_a_measurements_charges_is_charged_no_more(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _trained(folder, asked())
    charge, made = Budget.charge, []

    def once(self: Budget, *given: Any, **more: Any) -> Any:
        if made:
            raise Crash
        made.append(charge(self, *given, **more))
        return made[0]

    with monkeypatch.context() as patched:
        patched.setattr(Budget, "charge", once)
        with pytest.raises(Crash):
            Hospital(folder).measure(asked())
    hospital = Hospital(folder)
    assert hospital.budget is not None
    hospital.budget.release("study")
    _never_measures(monkeypatch)
    with pytest.raises(RequestRefused, match="given up"):
        Hospital(folder).measure(asked())
    assert _paid(Hospital(folder)) == [(3, "fisher")]


def test_nothing_is_trained_behind_the_measurement(
    folder: Path, asked: Callable[..., MeasureRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = Hospital(folder)
    hospital.answer(_round(asked(), 1))
    hospital.measure(asked())
    monkeypatch.setattr(hospital_module, "train", lambda *args: pytest.fail("a gradient was computed"))
    with pytest.raises(RequestRefused, match="had its last round"):
        hospital.answer(_round(asked(), 2))


def test_other_records_are_not_measured_on_the_old_charge(
    folder: Path, asked: Callable[..., MeasureRequest], phantom: ImageDataset, make_local: LocalMaker
) -> None:
    with pytest.raises(RequestRefused, match="shape"):
        Hospital(folder).measure(asked(height=32))
    with pytest.raises(RequestRefused, match="task"):
        Hospital(folder).measure(asked(classes=("a", "b", "c"), task="multi-class"))


def test_an_anchor_that_is_not_this_hospitals_stops_it(
    folder: Path, asked: Callable[..., MeasureRequest]
) -> None:
    token = f"{'a' * 48}:{'b' * 64}:{'c' * 64}"
    request = asked()
    with pytest.raises(Refusal):
        Hospital(folder).measure(MeasureRequest(request.study, request.settings, request.latents, token))


# The messages


def _changed(request: MeasureRequest, **changes: Any) -> Any:
    content = request.to_records()
    header = {**request._header(), **changes}
    content.config_records[CONFIG]["measure"] = canonical_json(header)
    return content


def test_a_question_and_an_answer_are_what_they_were_after_the_way(
    folder: Path, asked: Callable[..., MeasureRequest]
) -> None:
    request = asked()
    again = MeasureRequest.from_records(request.to_records())
    assert again.content_digest == request.content_digest
    reply = Hospital(_trained(folder, request)).measure(again)
    for other in (
        MeasureReply.from_records(reply.to_records(), request.settings),
        MeasureReply.from_bytes(reply.to_bytes()),
    ):
        assert other.to_bytes() == reply.to_bytes()


@pytest.mark.parametrize("number", [0, 1, ROUNDS, ROUNDS + 2, 2.5, "3", None])
def test_a_measurement_has_the_number_behind_the_last_round_and_no_other(
    number: Any, asked: Callable[..., MeasureRequest]
) -> None:
    with pytest.raises((SettingRefused, PayloadRefused)):
        MeasureRequest.from_records(_changed(asked(), round=number))


def test_settings_that_name_no_measurement_are_refused(asked: Callable[..., MeasureRequest]) -> None:
    plain = asked(metric_noise_multiplier=0.0, fisher_noise_multiplier=0.0)
    with pytest.raises(RequestRefused, match="name none"):
        MeasureRequest.from_records(plain.to_records())


def test_a_question_with_more_in_it_is_refused(asked: Callable[..., MeasureRequest]) -> None:
    with pytest.raises(PayloadRefused):
        MeasureRequest.from_records(_changed(asked(), thresholds=[0.5]))
    content = asked().to_records()
    content.array_records[MODEL]["teacher"] = content.array_records[MODEL][LATENTS]
    with pytest.raises(PayloadRefused):
        MeasureRequest.from_records(content)


@pytest.mark.parametrize("drop", [("metric",), ("fisher",), ("metric", "fisher")])
def test_an_answer_without_a_part_that_was_asked_for_is_refused(
    drop: Sequence[str], folder: Path, asked: Callable[..., MeasureRequest]
) -> None:
    reply = Hospital(_trained(folder, asked())).measure(asked())
    kept = {kind: values for kind, values in reply.measured.items() if kind not in drop}
    other = MeasureReply("study", 3, "h", 20, kept, "")
    with pytest.raises(PayloadRefused):
        MeasureReply.from_records(other.to_records(), asked().settings)
    shorter = {kind: values[: len(values) - (kind in drop)] for kind, values in reply.measured.items()}
    with pytest.raises(PayloadRefused):
        MeasureReply.from_records(
            MeasureReply("study", 3, "h", 20, shorter, "").to_records(), asked().settings
        )


def test_the_digest_is_of_the_study_its_settings_and_the_model(asked: Callable[..., MeasureRequest]) -> None:
    first = asked()
    others = [
        asked(fill=0.2),
        asked(metric_noise_multiplier=6.5),
        asked(fisher_noise_multiplier=0.0),
        MeasureRequest("another", first.settings, first.latents),
    ]
    assert len({first.content_digest, *(other.content_digest for other in others)}) == 5
    anchored = MeasureRequest(first.study, first.settings, first.latents, f"{'a' * 48}:{'b' * 64}:{'c' * 64}")
    assert anchored.content_digest == first.content_digest
