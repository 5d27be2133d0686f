"""Every byte to the coordinator passes one gate: classed and logged before it leaves, or kept back."""

import dataclasses
import errno
import importlib
import inspect
import json
import os
import pkgutil
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

import fedward.client
import fedward.common
from fedward.client import egress
from fedward.client import hospital as hospital_module
from fedward.client.app import app
from fedward.client.egress import SILENT, SPEAKING, UNLOGGED, Gate, open_gate
from fedward.client.egress_fields import CONSENTED, DP, FIELDS, PAID_BY, PUBLIC, SEEDED, WAIVED
from fedward.client.egress_log import LOG
from fedward.client.enrolment import join
from fedward.client.hospital import Hospital, create_hospital
from fedward.client.replies import ReplyStore
from fedward.client.spending import Charge
from fedward.common.chain import Head
from fedward.common.codec import decode, encode
from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import ImageDataset, Split
from fedward.common.differences import replica_digest
from fedward.common.errors import BudgetRefused, EgressRefused, LedgerRefused, Refusal, RequestRefused
from fedward.common.files import canonical_json
from fedward.common.instants import utc_now
from fedward.common.ledger import Ledger, verify
from fedward.common.letters import ENVELOPE
from fedward.common.measure_messages import MEASURE, MeasureReply, MeasureRequest
from fedward.common.measurement import measurements
from fedward.common.messages import (
    CONFIG,
    LATENTS,
    REFUSED,
    UPDATE,
    Replica,
    TrainReply,
    TrainRequest,
    message_bytes,
    refusal_text,
    wire_bytes,
)
from fedward.common.models import build_student, parameter_count
from fedward.common.privacy import Mechanism
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server import rounds
from fedward.server.checkpoint import load_checkpoint
from fedward.server.study_folder import StudyFolder
from fedward.simulations.federation import run_in_process

SECRET = "Jane Doe, born 1 May 1970"
Send = Callable[..., Message]


pytestmark = pytest.mark.usefixtures("flower_node")


@pytest.fixture
def site(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:17], phantom.train.labels[:17])
    folder = tmp_path / "hospitals" / "0"
    create_hospital(folder, "hospital-0", records, 50.0, 1e-5, None)
    return folder


@pytest.fixture
def send(tmp_path: Path, site: Path) -> Send:
    """send(content, message_type) -> what leaves the hospital."""

    def call(content: RecordDict, message_type: str = "train") -> Message:
        context = Context(1, 100, {"partition-id": 0}, RecordDict(), {STUDY_FOLDER: str(tmp_path)})
        return app(Message(content, 100, message_type), context)

    return call


@pytest.fixture
def question(make_local: Callable[..., LocalSettings]) -> Callable[..., RecordDict]:
    """question(server_round=1, **settings) -> the content of a TRAIN message."""

    def make(server_round: int = 1, **changes: Any) -> RecordDict:
        local = make_local(**changes)
        packed = encode(np.zeros(parameter_count(build_student(local.spec)), np.float32), "fp32")
        vectors = {LATENTS: packed}
        return TrainRequest("study", server_round, local, 0.5, ("fp32", "fp32"), vectors).to_records()

    return make


def _by_differences(question: Callable[..., RecordDict], **changes: Any) -> RecordDict:
    """The content of a second round's message, in a study whose model travels as differences."""
    asked = TrainRequest.from_records(question(2, **changes))
    model = decode(asked.vectors[LATENTS], (len(asked.vectors[LATENTS]) - 16) // 4, "fp32")
    named = Replica(replica_digest(model))
    return dataclasses.replace(asked, codec=("diff3", "fp32"), replica=named).to_records()


def _measurement(question: Callable[..., RecordDict], **changes: Any) -> RecordDict:
    """The content of a message that asks for the measurement of a study with these settings."""
    asked = TrainRequest.from_records(question(**changes))
    return MeasureRequest("study", asked.settings, asked.vectors[LATENTS]).to_records()


def _log(site: Path) -> list[dict[str, Any]]:
    """The log's entries after its first, as they stand on the disk."""
    verify(site / LOG)
    lines = [json.loads(line) for line in (site / LOG).read_bytes().splitlines()]
    return [{"kind": line["kind"], **line["body"]} for line in lines[1:]]


def _names(entry: dict[str, Any]) -> set[tuple[str, str]]:
    return {(entry["message"], field["name"]) for field in entry["fields"]}


def _all_refusals() -> list[type[Refusal]]:
    """Every subclass that the hospital's code can see; a new one is walked as soon as it is written."""
    for room in (fedward.common, fedward.client):
        for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
            importlib.import_module(module.name)
    found, new = set(), [Refusal]
    while new:
        children = new.pop().__subclasses__()
        new += [child for child in children if child not in found]
        found |= set(children)
    return sorted(
        (kind for kind in found if kind.__module__.startswith("fedward.")), key=lambda k: k.__name__
    )


# The walk


def test_every_field_of_every_message_has_a_class_and_every_class_a_field(
    send: Send, question: Callable[..., RecordDict], site: Path
) -> None:
    noise = {"metric_noise_multiplier": 6.0, "fisher_noise_multiplier": 7.0}
    replies = [
        send(RecordDict(), "query"),
        send(question(**noise)),
        send(_by_differences(question, **noise)),
        send(_measurement(question, **noise), MEASURE),
        send(RecordDict()),
    ]
    assert [reply.has_error() for reply in replies] == [False, False, False, False, True]
    joined, _ = join(site / "joins", "h", 10, utc_now())
    open_gate(site).hand_out(joined.statement()["predicate"])
    entries = _log(site)
    assert [entry["message"] for entry in entries] == [
        "enrol",
        "train",
        "train",
        "measure",
        "refusal",
        "join",
    ]
    # `test_letters` walks those that come in an envelope.
    assert set.union(*map(_names, entries)) == {key for key in FIELDS if key[1] != ENVELOPE}
    assert entries[-1]["bytes"] == len(canonical_json(joined.statement()["predicate"]))
    for entry, reply in zip(entries[:-1], replies, strict=True):
        assert entry["bytes"] == message_bytes(reply) == sum(field["bytes"] for field in entry["fields"])
    for kind, why in FIELDS.values():
        assert kind in (PUBLIC, DP, CONSENTED)
        assert why


def test_a_request_with_a_field_that_has_no_class_is_not_handed_out(site: Path) -> None:
    request, _ = join(site / "joins", "h", 10, utc_now())
    with pytest.raises(EgressRefused, match=r"request\.beds"):
        open_gate(site).hand_out({**request.statement()["predicate"], "beds": 300})


def test_each_part_of_a_reply_is_a_field_that_the_table_names(question: Callable[..., RecordDict]) -> None:
    """A field that is added to `TrainReply` must be added to the table too."""
    renamed = {"server_round": "reply.round", "update": "update.latents"}
    names = {renamed.get(f.name, f"reply.{f.name}") for f in dataclasses.fields(TrainReply)}
    assert {("train", name) for name in {*names, ENVELOPE}} == {key for key in FIELDS if key[0] == "train"}


def test_each_part_of_a_measurement_is_a_field_that_the_table_names(
    make_local: Callable[..., LocalSettings],
) -> None:
    local = make_local(metric_noise_multiplier=6.0, fisher_noise_multiplier=7.0)
    names = {f.name for f in dataclasses.fields(MeasureReply)} - {"measured", "server_round"} | {"round"}
    parts = {f"reply.{name}" for name in names} | {f"measured.{kind}" for kind in measurements(local)}
    assert {("measure", name) for name in {*parts, ENVELOPE}} == {
        key for key in FIELDS if key[0] == "measure"
    }


def test_every_private_field_has_the_one_kind_of_charge_that_pays_for_it() -> None:
    assert set(PAID_BY) == {key for key, (kind, _) in FIELDS.items() if kind == DP}


def test_a_measurement_leaves_with_one_charge_for_each_part(
    send: Send, question: Callable[..., RecordDict], site: Path
) -> None:
    noise = {"metric_noise_multiplier": 6.0, "fisher_noise_multiplier": 7.0}
    assert send(question(**noise)).has_content()
    assert send(_measurement(question, **noise), MEASURE).has_content()
    _, entry = _log(site)
    paid = {charge["kind"]: charge["mechanism"]["noise_multiplier"] for charge in entry["charges"]}
    assert paid == {"metric": 6.0, "fisher": 7.0}
    assert {f["name"] for f in entry["fields"] if f["class"] == DP} == {"measured.metric", "measured.fisher"}


@pytest.mark.parametrize("paid", [(), ("metric",), ("fisher",), ("dp-sgd", "fisher")])
def test_a_measurement_with_a_part_that_was_not_paid_for_does_not_leave(
    site: Path, paid: tuple[str, ...]
) -> None:
    counts = {"metric": np.zeros(3, np.int64), "fisher": np.zeros(5, np.int64)}
    content = MeasureReply("study", 4, "h", 10, counts, "").to_records()
    gate, asked = Gate(site / LOG), Message(RecordDict(), 100, MEASURE)
    with pytest.raises(EgressRefused):
        gate.release("measure", content, asked, tuple(_charge("study", 4, kind) for kind in paid))
    charges = tuple(_charge("study", 4, kind) for kind in counts)
    assert gate.release("measure", content, asked, charges).has_content()


def _with_header_field(reply: TrainReply) -> RecordDict:
    content = _to_records(reply)
    header = json.loads(content.config_records[CONFIG]["reply"])  # type: ignore[arg-type]
    content.config_records[CONFIG]["reply"] = canonical_json(header | {"loss": 0.25})
    return content


def _with_array(reply: TrainReply) -> RecordDict:
    content = _to_records(reply)
    content.array_records[UPDATE]["fisher"] = Array(reply.update)
    return content


def _with_record(record: Any) -> Callable[[TrainReply], RecordDict]:
    return lambda reply: RecordDict({**_to_records(reply), "more": record})


def _with_config(name: str, value: Any) -> Callable[[TrainReply], RecordDict]:
    def make(reply: TrainReply) -> RecordDict:
        content = _to_records(reply)
        content.config_records[CONFIG][name] = value
        return content

    return make


_to_records = TrainReply.to_records
PLANTED: dict[str, Callable[[TrainReply], RecordDict]] = {
    "a field in the header": _with_header_field,
    "an array": _with_array,
    "an array record": _with_record(ArrayRecord({LATENTS: Array(np.zeros(3))})),
    "a metric": _with_record(MetricRecord({"accuracy": 0.97})),
    "a configuration": _with_record(ConfigRecord({"reply": canonical_json({"study": "study"})})),
    "a value beside the header": _with_config("seconds", 1.25),
    "a text beside the header": _with_config("note", SECRET),
    "another header": _with_config("more", canonical_json({SECRET: 1})),
    "an empty header": _with_config("more", b"{}"),
    "a header that is no JSON": _with_config("more", SECRET.encode()),
    "a header in another spelling": _with_config("more", b'{"a": 1}'),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_field_without_a_class_holds_the_whole_message_back_and_is_logged(
    send: Send,
    question: Callable[..., RecordDict],
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setattr(TrainReply, "to_records", PLANTED[case])
    reply = send(question())
    assert refusal_text(reply) == ("EgressRefused", SILENT)
    held, refused = _log(site)
    assert (held["kind"], held["message"], held["asked"]) == ("held", "train", "train")
    assert "class" in held["why"]
    assert (refused["message"], refused["about"]) == ("refusal", {"refusal": "EgressRefused"})
    assert "Jane" not in repr(reply.__dict__)


def test_a_field_that_is_added_to_the_profile_does_not_leave(
    send: Send, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"name": "hospital-0", "num_examples": 20, "beds": 417}
    monkeypatch.setattr(Hospital, "enrolment", more)
    assert refusal_text(send(RecordDict(), "query"))[0] == "EgressRefused"
    assert _log(site)[0]["why"] == "The field profile.beds of a message 'enrol' has no class."


def test_there_are_refusals_to_walk() -> None:
    assert {EgressRefused, LedgerRefused, RequestRefused} < set(_all_refusals())


@pytest.mark.parametrize("kind", _all_refusals(), ids=lambda kind: kind.__name__)
def test_every_refusal_leaves_by_its_name_and_speaks_only_of_the_request(
    send: Send,
    question: Callable[..., RecordDict],
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Refusal],
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise kind(f"{SECRET} asks for fewer steps.")

    monkeypatch.setattr(ReplyStore, "get", refuse)
    reply = send(question())
    name, sentence = refusal_text(reply)
    assert (reply.error.code, name) == (REFUSED, kind.__name__)
    assert ("Jane" in sentence) == issubclass(kind, SPEAKING)
    (entry,) = _log(site)
    assert (entry["message"], entry["about"], entry["charges"]) == (
        "refusal",
        {"refusal": kind.__name__},
        [],
    )
    assert entry["bytes"] == message_bytes(reply)
    assert "Jane" not in json.dumps(entry)  # the log holds digests, not what left


def test_only_refusals_about_the_request_its_envelope_or_the_budget_speak() -> None:
    names = {kind.__name__ for kind in _all_refusals() if issubclass(kind, SPEAKING)}
    rules = {"PolicyRefused", "ApprovalMissing"}  # they name a rule and its limit, which hold for anybody
    envelope = {
        "EnvelopeRefused",
        "SenderRefused",
        "EnvelopeMisdirected",
        "EnvelopeExpired",
        "EnvelopeReplayed",
    }
    request = {"PayloadRefused", "ReplicaUnknown", "RequestRefused", "SettingRefused"}
    assert names == {"BudgetRefused"} | request | rules | envelope


def test_a_sentence_that_names_the_state_folder_does_not_leave(
    send: Send, question: Callable[..., RecordDict], site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise RequestRefused(f"{site}/replies/1 cannot be read.")

    monkeypatch.setattr(ReplyStore, "get", refuse)
    assert refusal_text(send(question())) == (
        "RequestRefused",
        "The hospital cannot answer; see its own log.",
    )


def test_a_sentence_is_bounded_whatever_the_request_puts_into_it(
    send: Send, question: Callable[..., RecordDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise RequestRefused("x" * 10**7 + "\ud800")

    monkeypatch.setattr(ReplyStore, "get", refuse)
    assert len(refusal_text(send(question()))[1]) == 1000


# What is charged


def test_an_update_leaves_with_the_charge_of_its_own_round(
    send: Send, question: Callable[..., RecordDict], site: Path
) -> None:
    send(question(1))
    send(question(2))
    send(question(2))
    entries = _log(site)
    charges = [charge for entry in entries for charge in entry["charges"]]
    assert [charge["round"] for charge in charges] == [1, 2, 2]
    assert charges[1] == charges[2]
    assert charges[0]["mechanism"] == {"noise_multiplier": 4.0, "sample_rate": 0.25, "steps": 1}
    budget = Hospital(site).budget
    assert budget is not None
    assert all(budget.ledger.contains(Head(charge["entry"], charge["hash"])) for charge in charges)
    assert entries[1]["fields"] == entries[2]["fields"]  # asked again: the very same bytes


def _charge(study: str = "study", server_round: int = 1, kind: str = "dp-sgd") -> Charge:
    step = Mechanism(4.0, 0.25, 1)
    return Charge(study, server_round, "a" * 64, kind, step, {}, Head(3, "b" * 64), "2026-01-01")


@pytest.mark.parametrize(
    "charges",
    [
        (),
        (_charge(server_round=2),),
        (_charge(study="another"),),
        (_charge(kind="metric"),),
        (_charge(), _charge(kind="metric")),
    ],
)
def test_an_update_without_a_charge_or_with_anothers_does_not_leave(
    site: Path, charges: tuple[Charge, ...]
) -> None:
    gate, reply = Gate(site / LOG), TrainReply("study", 1, "h", 10, "fp32", np.zeros(9, np.uint8))
    asked = Message(RecordDict(), 100, "train")
    with pytest.raises(EgressRefused):
        gate.release("train", reply.to_records(), asked, charges)
    assert [entry["kind"] for entry in _log(site)] == ["held"]
    assert gate.release("train", reply.to_records(), asked, (_charge(),)).has_content()


def test_enrolment_needs_no_charge_and_no_other_kind_of_message_is_known(site: Path) -> None:
    gate, asked = Gate(site / LOG), Message(RecordDict(), 100, "query")
    content = RecordDict({CONFIG: ConfigRecord({"profile": canonical_json({"name": "h"})})})
    assert gate.release("enrol", content, asked, ()).has_content()
    for kind in ("evaluate", "train", ""):
        with pytest.raises(EgressRefused):
            gate.release(kind, content, asked, ())


def test_a_stored_reply_whose_charge_the_ledger_lacks_does_not_leave(
    send: Send, question: Callable[..., RecordDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert send(question()).has_content()
    monkeypatch.setattr(Hospital, "charges_of", lambda self, reply: ())
    assert refusal_text(send(question()))[0] == "EgressRefused"


def _update_entry(site: Path) -> dict[str, Any]:
    (entry,) = (field for field in _log(site)[-1]["fields"] if field["name"] == "update.latents")
    return dict(entry)


def test_a_simulation_without_privacy_is_logged_as_consented_with_its_reason(
    tmp_path: Path, phantom: ImageDataset, send: Send, site: Path, question: Callable[..., RecordDict]
) -> None:
    records = Split(phantom.train.images[:17], phantom.train.labels[:17])
    shutil.rmtree(site)
    create_hospital(site, "hospital-0", records, None, 1e-5, 7)
    assert send(question(noise_multiplier=0.0, sample_rate=1.0)).has_content()
    field = _update_entry(site)
    assert (field["class"], field["why"]) == (CONSENTED, WAIVED)
    assert "public data" in WAIVED


def test_noise_from_a_seed_is_logged_as_what_it_is(
    phantom: ImageDataset, send: Send, site: Path, question: Callable[..., RecordDict]
) -> None:
    records = Split(phantom.train.images[:17], phantom.train.labels[:17])
    create_hospital(site, "hospital-0", records, 50.0, 1e-5, 7)
    assert send(question()).has_content()
    field = _update_entry(site)
    assert (field["class"], field["why"]) == (DP, SEEDED)
    assert "protects nobody" in SEEDED


def test_a_waiver_never_passes_for_noise_and_a_charge_never_for_a_waiver(site: Path) -> None:
    gate, reply = Gate(site / LOG), TrainReply("study", 1, "h", 10, "fp32", np.zeros(9, np.uint8))
    with pytest.raises(EgressRefused):
        gate.release("train", reply.to_records(), Message(RecordDict(), 100, "train"), (_charge(),), WAIVED)


# The log is written before anything leaves


@pytest.mark.parametrize("message_type", ["train", "query"])
def test_where_the_log_cannot_be_written_one_constant_sentence_leaves(
    send: Send,
    question: Callable[..., RecordDict],
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    message_type: str,
) -> None:
    send(RecordDict(), "query")
    write, before = os.write, (site / LOG).read_bytes()

    def full(descriptor: int, data: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(site / "egress")):
            raise OSError(errno.ENOSPC, SECRET)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    for content in (question(), RecordDict(), question(noise_multiplier=0.001)):
        reply = send(content, message_type)
        assert refusal_text(reply) == ("EgressRefused", UNLOGGED)
    assert (site / LOG).read_bytes() == before
    monkeypatch.undo()
    assert not send(question()).has_error()  # the reply was stored, and leaves once it can be logged
    assert _log(site)[-1]["message"] == "train"


@pytest.mark.parametrize("damage", ["flipped", "cut", "a folder"])
def test_where_the_log_does_not_verify_nothing_else_leaves(
    send: Send, question: Callable[..., RecordDict], site: Path, damage: str
) -> None:
    for server_round in (1, 2):
        send(question(server_round))
    open_gate.cache_clear()
    data = (site / LOG).read_bytes()
    if damage == "a folder":
        (site / LOG).unlink()
        (site / LOG).mkdir()
    else:
        (site / LOG).write_bytes(
            data[:-500] if damage == "cut" else data.replace(b'"bytes":16,', b'"bytes":15,')
        )
    for content, message_type in ((question(), "train"), (RecordDict(), "query"), (RecordDict(), "train")):
        assert refusal_text(send(content, message_type)) == ("EgressRefused", UNLOGGED)


def test_the_line_is_on_the_disk_before_the_message_is_there(
    send: Send, question: Callable[..., RecordDict], site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def making(*args: Any, **kwargs: Any) -> Message:
        made.append(len(_log(site)))
        return Message(*args, **kwargs)

    monkeypatch.setattr(egress, "Message", making)
    send(RecordDict(), "query")
    send(question())
    assert made == [1, 2]


def test_two_daemons_write_one_log(site: Path) -> None:
    gates = [Gate(site / LOG), Gate(site / LOG)]
    for number in range(6):
        gates[number % 2].refuse(BudgetRefused("None is left."), Message(RecordDict(), 100, "train"))
    assert len(_log(site)) == 6


def test_the_app_makes_no_message_but_through_the_gate() -> None:
    source = inspect.getsource(importlib.import_module("fedward.client.app"))
    assert "Message(" not in source
    assert "Error(" not in source
    assert "refusal_reply" not in source
    assert "Message(" not in inspect.getsource(hospital_module)


def test_the_gate_does_not_slow_a_round(site: Path) -> None:
    gate, asked = Gate(site / LOG), Message(RecordDict(), 100, "train")
    content = TrainReply("study", 1, "h", 10, "fp32", np.zeros(62_000, np.uint8)).to_records()
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        gate.release("train", content, asked, (_charge(),))
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.02  # about 1 ms; a disk's sync on a busy machine takes longer


# The byte counts add up to what the transport counted


@pytest.fixture
def federation(
    tmp_path: Path,
    phantom: ImageDataset,
    make_study: Callable[..., Study],
    make_local: Callable[..., LocalSettings],
    make_federation: Callable[..., StudyFolder],
) -> StudyFolder:
    """Three hospitals and three rounds; the third hospital's budget is too small, so it refuses each."""
    study = make_study(make_local(), quorum=2)
    folder = make_federation(tmp_path / "study", study)
    poor = folder.path / "hospitals" / "2"
    records = Split(phantom.train.images[80:100], phantom.train.labels[80:100])
    for path in sorted(poor.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    create_hospital(poor, "hospital-2", records, 0.01, 1e-5, 0)
    return folder


def test_what_the_hospitals_logged_is_what_the_coordinator_counted(federation: StudyFolder) -> None:
    run_in_process(federation.path, 3)
    entries = [entry for index in range(3) for entry in _log(federation.path / "hospitals" / str(index))]
    history = load_checkpoint(federation.checkpoint, federation.study()).history
    assert [len(row["refusals"]) for row in history] == [1, 1, 1]
    sent = sum(entry["bytes"] for entry in entries if entry["message"] in ("train", "refusal"))
    assert sent == sum(row["uplink_bytes"] for row in history) > 0
    events = [json.loads(line) for line in (federation.path / "progress.jsonl").read_bytes().splitlines()]
    noted = [event["bytes"] for event in events if event["event"] == "enrolled"]
    enrolled = sum(entry["bytes"] for entry in entries if entry["message"] == "enrol")
    assert [enrolled] == noted
    assert enrolled == 3 * len(canonical_json({"name": "hospital-0", "num_examples": 30}))


def test_a_refused_enrolment_is_counted_as_such(
    federation: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (federation.path / "hospitals" / "2" / "data.npz").write_bytes(b"")
    folder = StudyFolder(federation.path)
    # It is waited for until the time is up.
    monkeypatch.setattr(rounds.enrol, "__defaults__", (0.5, lambda size: None))
    run_in_process(folder.path, 3)
    entries = [entry for index in range(3) for entry in _log(folder.path / "hospitals" / str(index))]
    asked = {kind: sum(e["bytes"] for e in entries if e["asked"] == kind) for kind in ("query", "train")}
    events = [json.loads(line) for line in (folder.path / "progress.jsonl").read_bytes().splitlines()]
    assert [event["bytes"] for event in events if event["event"] == "enrolled"] == [asked["query"]]
    history = load_checkpoint(folder.checkpoint, folder.study()).history
    assert sum(row["uplink_bytes"] for row in history) == asked["train"]


def test_bytes_are_counted_alike_on_both_sides(send: Send, question: Callable[..., RecordDict]) -> None:
    reply = send(question())
    assert message_bytes(reply) == wire_bytes(reply.content)
    refused = send(RecordDict())
    assert message_bytes(refused) == 3 + len(str(refused.error.reason).encode())


def test_the_log_of_another_purpose_is_not_written_to(site: Path) -> None:
    (site / "egress").mkdir()
    Ledger.create(site / LOG, "budget")
    with pytest.raises(LedgerRefused, match="record of what left"):
        Gate(site / LOG)
