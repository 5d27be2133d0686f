"""In a federation nothing is asked, answered or refused that its sender's signatures do not prove."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedward.client import letters as site_letters
from fedward.client.app import app as client_app
from fedward.client.egress_log import LOG
from fedward.client.membership import Membership
from fedward.client.state_folder import NODE_ID
from fedward.common.config import LocalSettings, Study
from fedward.common.envelope import enclose, unproven_header
from fedward.common.envelope_header import Address
from fedward.common.errors import EnvelopeRefused, OutputRefused, PayloadRefused, QuorumMissed
from fedward.common.files import canonical_json
from fedward.common.instants import utc_now
from fedward.common.letters import (
    ENVELOPE,
    about,
    as_content,
    envelope_in,
    pack_question,
    pack_refusal,
    unpack_question,
    unpack_refusal,
)
from fedward.common.messages import CONFIG, REFUSED, refusal_text, wire_bytes
from fedward.common.records import pack_records
from fedward.common.reply_codes import NOT_APPROVED
from fedward.common.sealing_keys import SEALING_KEY_FILE, announce, create_sealing_key
from fedward.common.thin_app import STUDY_FOLDER
from fedward.server import app as app_module
from fedward.server import letters as office_letters
from fedward.server.app import app as server_app
from fedward.server.checkpoint import load_checkpoint
from fedward.server.coordinator import COORDINATOR_STATE, Coordinator
from fedward.server.enrolment import revoke
from fedward.server.post import Post
from fedward.server.sites import Dated, Sites
from fedward.server.study_folder import StudyFolder
from fedward.simulations.federation import InProcessGrid, run_in_process

HOSPITALS = 2
FIRST_NODE = 100
Change = Callable[[Message], Message]


class Network(InProcessGrid):
    """What stands between a coordinator and its sites: it records everything, and may change it."""

    def __init__(self, folder: StudyFolder) -> None:
        super().__init__(client_app, HOSPITALS, {STUDY_FOLDER: str(folder.path)})
        self.questions: list[Message] = []
        self.answers: list[Message] = []
        self.on_question: Change = lambda question: question
        self.on_answer: Change = lambda answer: answer

    def push_messages(self, messages: Any) -> Any:
        changed = [self.on_question(message) for message in messages]
        self.questions += changed
        return super().push_messages(changed)

    def pull_messages(self, message_ids: Any) -> Iterator[Message]:
        for answer in super().pull_messages(message_ids):
            # The answer as it came is kept, whatever becomes of it.
            self.answers.append(
                Message(answer.content, metadata=answer.metadata) if answer.has_content() else answer
            )  # type: ignore[call-overload]
            yield self.on_answer(answer)

    def ask(self, folder: StudyFolder, coordinator: Coordinator) -> None:
        """Run the study over this network."""
        run_config: dict[str, Any] = {STUDY_FOLDER: str(folder.path)}
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv(COORDINATOR_STATE, str(coordinator.folder))
            server_app(self, Context(1, 1, {}, RecordDict(), run_config))


@pytest.fixture
def coordinator(tmp_path: Path, make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(tmp_path / "c", now=utc_now())


@pytest.fixture
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(rounds=2), (30, 50), quorum=2, round_timeout=20.0)


@pytest.fixture
def folder(
    tmp_path: Path,
    study: Study,
    coordinator: Coordinator,
    make_federation: Callable[..., StudyFolder],
    join_federation: Callable[..., Any],
) -> StudyFolder:
    """A study whose hospitals are sites of the coordinator's."""
    made = make_federation(tmp_path / "s", study)
    for number, hospital in enumerate(study.hospitals):
        site = made.path / "hospitals" / str(number)
        join_federation(coordinator, site, hospital.name, utc_now())
        (site / NODE_ID).write_text(str(FIRST_NODE + number))
    return made


@pytest.fixture
def network(folder: StudyFolder) -> Network:
    return Network(folder)


def _site(folder: StudyFolder, number: int) -> Path:
    return folder.path / "hospitals" / str(number)


def _log(folder: StudyFolder, number: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (_site(folder, number) / LOG).read_bytes().splitlines()]
    return [line["body"] for line in lines if line["kind"] == "left"]


def _events(folder: StudyFolder, name: str) -> list[dict[str, Any]]:
    events = map(json.loads, (folder.path / "progress.jsonl").read_bytes().splitlines())
    return [event for event in events if event["event"] == name]


def _answers(network: Network, kind: str) -> list[bytes]:
    found = [envelope_in(answer.content) for answer in network.answers if answer.has_content()]
    return [one for one in found if unproven_header(one).address.kind == kind]


def _asked(network: Network, kind: str, node_id: int) -> Message:
    return next(
        question
        for question in network.questions
        if question.metadata.dst_node_id == node_id and question.metadata.message_type == kind
    )


def _sent(network: Network, question: Message) -> Message:
    """A question put to its node once more by somebody in between."""
    again = Message(question.content, question.metadata.dst_node_id, question.metadata.message_type)
    (message_id,) = InProcessGrid.push_messages(network, [again])
    (reply,) = InProcessGrid.pull_messages(network, [message_id])
    return reply


def _swapped(content: RecordDict) -> Change:
    return lambda message: Message(content, metadata=message.metadata)  # type: ignore[call-overload,no-any-return]


# As it should be


def test_a_study_in_envelopes_ends_in_the_very_model_of_a_plain_one(
    tmp_path: Path,
    folder: StudyFolder,
    study: Study,
    coordinator: Coordinator,
    network: Network,
    make_federation: Callable[..., StudyFolder],
) -> None:
    twin = make_federation(tmp_path / "twin", study)
    run_in_process(twin.path, HOSPITALS)
    network.ask(folder, coordinator)
    assert folder.final.read_bytes() == twin.final.read_bytes()
    assert _events(folder, "unproven") == []
    assert all(set(message.content) == {ENVELOPE} for message in network.questions + network.answers)


def test_what_is_measured_behind_the_last_round_comes_sealed_too(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network
) -> None:
    measured = replace(study, local=replace(study.local, metric_noise_multiplier=2.0))
    (folder.path / "study.json").write_text(json.dumps(measured.to_dict()))
    network.ask(folder, coordinator)
    answers = [unproven_header(one) for one in _answers(network, "measurement")]
    assert len(answers) == HOSPITALS
    assert all(one.sealed_to and one.address.server_round == 3 for one in answers)
    assert folder.measured.exists()
    assert _events(folder, "unproven") == []


def test_every_byte_that_left_in_an_envelope_is_in_the_log(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network
) -> None:
    network.ask(folder, coordinator)
    left = [entry for number in range(HOSPITALS) for entry in _log(folder, number)]
    sizes = [wire_bytes(answer.content) for answer in network.answers]
    assert sum(entry["bytes"] for entry in left) == sum(sizes)
    counted = _events(folder, "enrolled")[0]["bytes"] + sum(
        row["uplink_bytes"] for row in _events(folder, "closed")
    )
    assert counted == sum(sizes)
    asked = sum(wire_bytes(q.content) for q in network.questions if q.metadata.message_type == "train")
    assert sum(row["downlink_bytes"] for row in _events(folder, "closed")) == asked
    assert {entry["fields"][-1]["name"] for entry in left} == {ENVELOPE}
    signers = {Membership.load(_site(folder, n)).signer().public().keyid for n in range(HOSPITALS)}
    assert {entry["fields"][-1]["sha256"] for entry in left} == signers


def test_no_update_can_be_read_on_the_way_nor_once_the_study_has_ended(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network
) -> None:
    keys: list[bytes] = []
    network.on_answer = lambda answer: (keys.append((folder.path / SEALING_KEY_FILE).read_bytes()), answer)[1]
    network.ask(folder, coordinator)
    updates = _answers(network, "update")
    stored = [
        path.read_bytes().partition(b"\n")[2]
        for number in range(HOSPITALS)
        for path in (_site(folder, number) / "replies").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    ]
    assert len(stored) == len(updates) == HOSPITALS * study.local.rounds
    windows = [update[at : at + 16] for update in stored for at in range(0, len(update) - 16, 997)]
    assert windows
    assert not any(window in update for update in updates for window in windows if any(window))
    assert len(set(keys)) == 1
    assert not (folder.path / SEALING_KEY_FILE).exists()


def test_a_coordinator_that_dies_before_the_model_is_written_leaves_no_key_and_resumes(
    folder: StudyFolder, coordinator: Coordinator, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputRefused("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(app_module, "write_atomically", full)
        with pytest.raises(OutputRefused):
            network.ask(folder, coordinator)
    assert not (folder.path / SEALING_KEY_FILE).exists()
    asked = len(network.questions)
    network.ask(folder, coordinator)
    assert folder.final.exists()
    assert len(network.questions) == asked
    assert not (folder.path / SEALING_KEY_FILE).exists()


# Somebody between them


def _refused(network: Network, reply: Message, name: str, folder: StudyFolder, number: int) -> None:
    assert (reply.error.code, refusal_text(reply)[0]) == (REFUSED, name)
    assert _log(folder, number)[-1]["about"] == {"refusal": name}


def test_a_recorded_question_is_not_answered_again(
    folder: StudyFolder, coordinator: Coordinator, network: Network
) -> None:
    network.ask(folder, coordinator)
    replayed = _sent(network, network.questions[-1])
    number = network.questions[-1].metadata.dst_node_id - FIRST_NODE
    _refused(network, replayed, "EnvelopeReplayed", folder, number)


def test_a_question_that_comes_after_a_later_one_is_not_answered(
    folder: StudyFolder, coordinator: Coordinator, network: Network
) -> None:
    held: list[Message] = []

    def hold_the_first(question: Message) -> Message:
        if question.metadata.message_type == "train" and not held:
            held.append(Message(question.content, metadata=question.metadata))  # type: ignore[call-overload]
            return _swapped(as_content(b"lost"))(question)
        return question

    network.on_question = hold_the_first
    network.ask(folder, coordinator)
    (late,) = held
    reply = _sent(network, late)
    _refused(network, reply, "EnvelopeReplayed", folder, late.metadata.dst_node_id - FIRST_NODE)
    assert load_checkpoint(folder.checkpoint, folder.study()).server_round == 2


def test_a_question_for_one_site_is_not_answered_by_another(
    folder: StudyFolder, coordinator: Coordinator, network: Network
) -> None:
    network.ask(folder, coordinator)
    for kind in ("query", "train"):
        question = _asked(network, kind, FIRST_NODE)
        sent_on = Message(question.content, FIRST_NODE + 1, kind)
        _refused(network, _sent(network, sent_on), "EnvelopeMisdirected", folder, 1)


def test_a_question_past_its_expiry_is_not_answered(
    folder: StudyFolder, coordinator: Coordinator, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.ask(folder, coordinator)
    monkeypatch.setattr(site_letters, "utc_now", lambda: utc_now() + timedelta(minutes=20))
    _refused(network, _sent(network, network.questions[0]), "EnvelopeExpired", folder, 0)


@pytest.mark.parametrize("at", [9, 100, 1000, -4000, -1])
def test_a_question_with_one_byte_changed_is_not_answered(
    folder: StudyFolder, coordinator: Coordinator, network: Network, at: int
) -> None:
    network.ask(folder, coordinator)
    data = bytearray(envelope_in(_asked(network, "train", FIRST_NODE).content))
    data[at] ^= 1
    changed = Message(as_content(bytes(data)), FIRST_NODE, "train")
    reply = _sent(network, changed)
    assert refusal_text(reply)[0] in ("EnvelopeRefused", "SenderRefused", "EnvelopeMisdirected")
    assert _log(folder, 0)[-1]["message"] == "refusal"


def test_a_question_does_not_pass_for_one_of_another_kind(
    folder: StudyFolder, coordinator: Coordinator, network: Network
) -> None:
    changed: list[Message] = []

    def relabel(question: Message) -> Message:
        if changed or question.metadata.message_type != "train":
            return question
        changed.append(Message(question.content, question.metadata.dst_node_id, "query.measure"))
        return changed[0]

    network.on_question = relabel
    network.ask(folder, coordinator)
    (event,) = _events(folder, "unproven")
    assert event["why"].startswith("EnvelopeMisdirected: A message of kind 'train'")
    assert [row["replies"] for row in _events(folder, "closed")] == [2, 2]


def test_a_question_about_another_round_than_its_envelope_is_refused(
    folder: StudyFolder, coordinator: Coordinator, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(office_letters, "about", lambda content: ("", 2))
    with pytest.raises(
        QuorumMissed, match=r"EnvelopeMisdirected: A question about round 1 of .* about round 2"
    ):
        network.ask(folder, coordinator)


def test_an_answer_is_sealed_to_a_key_of_the_coordinators_only(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network, tmp_path: Path
) -> None:
    signer, now = coordinator.signer(utc_now()), int(utc_now().timestamp())
    posing = Membership.load(_site(folder, 1)).signer()
    posing.name = signer.name  # type: ignore[misc]
    key = create_sealing_key(tmp_path / "k").public()
    for number, owner in enumerate((posing, signer)):
        address = Address(study.name, 0, "enrol", f"node {FIRST_NODE}", now * 1000 + number, now + 60)
        question = enclose(pack_question(RecordDict(), announce(key, owner, now + 60)), address, signer)
        reply = _sent(network, Message(as_content(question), FIRST_NODE, "query"))
        if owner is posing:
            _refused(network, reply, "TrustRefused", folder, 0)
    assert reply.has_content()


def test_a_plain_question_is_not_answered_by_a_site(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network
) -> None:
    network.ask(folder, coordinator)
    for kind in ("query", "train"):
        reply = _sent(network, Message(RecordDict(), FIRST_NODE, kind))
        _refused(network, reply, "EnvelopeRefused", folder, 0)


def test_an_envelope_is_not_opened_by_a_hospital_that_has_joined_nobody(
    tmp_path: Path,
    folder: StudyFolder,
    study: Study,
    coordinator: Coordinator,
    network: Network,
    make_federation: Callable[..., StudyFolder],
) -> None:
    network.ask(folder, coordinator)
    alone = make_federation(tmp_path / "alone", study)
    reply = _sent(Network(alone), _asked(network, "train", FIRST_NODE))
    assert refusal_text(reply)[0] == "EnvelopeRefused"


@pytest.mark.parametrize("is_renewed", [True, False])
def test_a_coordinators_key_that_was_rotated_out_is_not_believed(
    folder: StudyFolder,
    study: Study,
    coordinator: Coordinator,
    network: Network,
    join_federation: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    is_renewed: bool,
) -> None:
    """A site that renewed knows that the key was given up; the coordinator itself signs with the new one,
    which a site that did not renew does not know."""
    stolen, now = coordinator.signer(utc_now()), utc_now()
    with coordinator.lock:
        coordinator.rotate(now, "tests", timedelta(minutes=1))
    if is_renewed:
        join_federation(coordinator, _site(folder, 0), "the same anew", now)
    later = now + timedelta(minutes=2)
    monkeypatch.setattr(site_letters, "utc_now", lambda: later)
    signer = stolen if is_renewed else Coordinator(coordinator.folder).signer(later)
    address = Address(study.name, 0, "enrol", f"node {FIRST_NODE}", 1, int(later.timestamp()) + 60)
    question = as_content(enclose(pack_question(RecordDict(), b""), address, signer))
    _refused(network, _sent(network, Message(question, FIRST_NODE, "query")), "SenderRefused", folder, 0)


def _change_once(network: Network, kind: str, change: Callable[[Message], Message]) -> list[Message]:
    changed: list[Message] = []

    def once(answer: Message) -> Message:
        if changed or answer.metadata.message_type != kind or answer.metadata.src_node_id != FIRST_NODE:
            return answer
        changed.append(change(answer))
        return changed[0]

    network.on_answer = once
    return changed


def _flipped(at: int) -> Change:
    def change(answer: Message) -> Message:
        data = bytearray(envelope_in(answer.content))
        data[at] ^= 1
        return _swapped(as_content(bytes(data)))(answer)

    return change


def _as_refusal(answer: Message) -> Message:
    return Message(Error(REFUSED, "BudgetRefused: forged"), metadata=answer.metadata)  # type: ignore[call-overload,no-any-return]


def _of_two_envelopes(answer: Message) -> Message:
    one = answer.content.array_records[ENVELOPE][ENVELOPE]
    return _swapped(RecordDict({ENVELOPE: ArrayRecord({ENVELOPE: one, "more": one})}))(answer)


def _not_bytes(answer: Message) -> Message:
    record = ArrayRecord({ENVELOPE: Array(np.zeros((2, 2)))})
    return _swapped(RecordDict({ENVELOPE: record}))(answer)


def _as_error(code: int) -> Change:
    return lambda answer: Message(Error(code, "no"), metadata=answer.metadata)  # type: ignore[call-overload,no-any-return]


FORGERIES = {
    "its header changed": _flipped(60),
    "its body changed": _flipped(1000),
    "its signature changed": _flipped(-1),
    "an unsigned refusal": _as_refusal,
    "an unsigned failure": _as_error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION),
    "an unsigned word of the bundle": _as_error(NOT_APPROVED),
    "nothing": _swapped(RecordDict()),
    "no bytes": _not_bytes,
}


@pytest.mark.parametrize("kind", ["query", "train"])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_proves_nothing_is_told_and_the_site_is_asked_again(
    folder: StudyFolder, coordinator: Coordinator, network: Network, forgery: str, kind: str
) -> None:
    changed = _change_once(network, kind, FORGERIES[forgery])
    network.ask(folder, coordinator)
    assert len(changed) == 1
    assert [event["node"] for event in _events(folder, "unproven")] == [FIRST_NODE]
    assert [row["replies"] for row in _events(folder, "closed")] == [2, 2]
    assert all(row["refusals"] == [] for row in _events(folder, "closed"))


def test_an_answer_of_an_earlier_round_or_of_another_site_is_not_taken(
    folder: StudyFolder, coordinator: Coordinator, network: Network
) -> None:
    """Somebody who holds SuperLink's database gives the coordinator other envelopes that it has."""
    before: list[RecordDict] = []

    def swap(answer: Message) -> Message:
        if answer.metadata.message_type != "train" or not answer.has_content():
            return answer
        before.append(answer.content)
        return _swapped(before[-2])(answer) if len(before) in (2, 4, 6) else answer

    network.on_answer = swap
    network.ask(folder, coordinator)
    told = [event["why"].partition(":")[0] for event in _events(folder, "unproven")]
    assert len(told) == 3
    assert set(told) <= {"EnvelopeMisdirected", "EnvelopeReplayed"}
    assert [row["replies"] for row in _events(folder, "closed")] == [2, 2]


def test_an_answer_that_was_held_back_is_not_taken_in_a_later_round(
    folder: StudyFolder, coordinator: Coordinator, network: Network
) -> None:
    """Its number was never seen: what stops it is the round that it names, and no hospital is blamed."""
    held: list[RecordDict] = []
    given: list[bool] = []

    def hold(answer: Message) -> Message:
        if answer.metadata.message_type != "train" or answer.metadata.src_node_id != FIRST_NODE:
            return answer
        if not held:
            held.append(answer.content)
            return _as_error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE)(answer)
        if len(_events(folder, "closed")) == 1 and not given:
            given.append(True)
            return _swapped(held[0])(answer)
        return answer

    network.on_answer = hold
    network.ask(folder, coordinator)
    (event,) = _events(folder, "unproven")
    assert event["why"].startswith("EnvelopeMisdirected: A message's round is 1")
    assert all(row["refusals"] == [] for row in _events(folder, "closed"))


@pytest.mark.parametrize("names_its_question", [True, False])
def test_an_answer_is_taken_for_its_own_question_only(
    folder: StudyFolder, coordinator: Coordinator, network: Network, names_its_question: bool
) -> None:
    """SuperLink says which question a reply answers, and from which node it is: it hands over the second
    hospital's answer as if the first had been heard with it."""
    second: list[Message] = []

    def early(answer: Message) -> Message:
        if second or answer.metadata.message_type != "train":
            return answer
        pending = next(m for m in network._pending.values() if m.metadata.dst_node_id == FIRST_NODE + 1)
        second.append(next(iter(InProcessGrid.pull_messages(network, [pending.metadata.message_id]))))
        if not names_its_question:
            where = second[0].metadata.__dict__
            where["_reply_to_message_id"] = answer.metadata.reply_to_message_id
        return second[0]

    network.on_answer = early
    network.ask(folder, coordinator)
    assert [event["node"] for event in _events(folder, "unproven")]
    assert [row["replies"] for row in _events(folder, "closed")] == [2, 2]


def test_what_one_node_cannot_prove_leaves_room_to_tell_of_another(
    folder: StudyFolder, coordinator: Coordinator, network: Network, study: Study
) -> None:
    told: list[tuple[int, str]] = []
    letters = office_letters.Letters(coordinator.folder, study.name, folder.path)
    post = Post(network, letters, lambda node, why: told.append((node, why)))
    network.on_answer = lambda answer: Message(
        Error(REFUSED, "SenderRefused: " + "x" * 10_000),
        metadata=answer.metadata,  # type: ignore[call-overload]
    )
    for node_id in [FIRST_NODE] * 150 + [FIRST_NODE + 1]:
        ids = post.push_messages([Message(RecordDict(), node_id, "query")])
        (reply,) = post.pull_messages(ids)
        assert len(reply.error.reason) <= 300
    assert [node for node, _ in told] == [FIRST_NODE] * 100 + [FIRST_NODE + 1]


def test_a_site_does_not_speak_under_another_sites_name(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network
) -> None:
    other = Membership.load(_site(folder, 1)).signer()

    def forge(answer: Message) -> Message:
        header = unproven_header(envelope_in(answer.content))
        address = replace(header.address, number=header.address.number + 1)
        if answer.metadata.message_type == "query":
            payload = pack_refusal(Error(REFUSED, "BudgetRefused: none is left"))
            return _swapped(as_content(enclose(payload, replace(address, kind="refusal"), other)))(answer)
        other.name = study.hospitals[0].name  # type: ignore[misc]
        return _swapped(as_content(enclose(b"", replace(address, kind="refusal"), other)))(answer)

    _change_once(network, "train", forge)
    network.ask(folder, coordinator)
    (event,) = _events(folder, "unproven")
    assert event["why"].startswith("SenderRefused")


def test_a_site_does_not_claim_another_sites_place_in_the_study(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network
) -> None:
    first, second = study.hospitals
    own = Membership.load(_site(folder, 1)).signer()
    profile = canonical_json({"name": first.name, "num_examples": first.num_examples})
    claim = pack_records(RecordDict({CONFIG: ConfigRecord({"profile": profile})}))
    forged: list[RecordDict] = []

    def pose(answer: Message) -> Message:
        if forged or answer.metadata.message_type != "query" or answer.metadata.src_node_id == FIRST_NODE:
            return answer
        address = unproven_header(envelope_in(answer.content)).address
        forged.append(as_content(enclose(claim, replace(address, number=address.number + 1), own)))
        return _swapped(forged[0])(answer)

    network.on_answer = pose
    network.ask(folder, coordinator)
    (event,) = _events(folder, "unproven")
    assert event["why"].startswith(f"EnvelopeMisdirected: The site '{second.name}'")
    assert [row["replies"] for row in _events(folder, "closed")] == [2, 2]


def test_a_site_that_was_revoked_is_not_believed_any_more(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network
) -> None:
    def then_revoke(answer: Message) -> Message:
        is_due = answer.metadata.src_node_id == FIRST_NODE and len(_events(folder, "closed")) == 1
        if is_due and not revoked:
            revoked.append(revoke(coordinator, study.hospitals[0].name, utc_now(), "tests"))
        return answer

    revoked: list[Any] = []
    network.on_answer = then_revoke
    short = replace(study, round_timeout=3.0)
    (folder.path / "study.json").write_text(json.dumps(short.to_dict()))
    with pytest.raises(QuorumMissed, match="hospital-0: Unproven: "):
        network.ask(folder, coordinator)
    assert load_checkpoint(folder.checkpoint, folder.study()).server_round == 1


def test_a_sites_key_whose_time_ended_is_not_believed_though_nobody_wrote_anything(
    folder: StudyFolder,
    study: Study,
    coordinator: Coordinator,
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sites = Sites(coordinator.folder)
    site = sites.find(study.hospitals[0].name)
    ends = utc_now() + timedelta(minutes=1)
    sites.put(replace(site, signing=(Dated(site.signing[0].value, ends),)))

    def then_wait(answer: Message) -> Message:
        if len(_events(folder, "closed")) == 1:
            monkeypatch.setattr(office_letters, "utc_now", lambda: ends)
        return answer

    network.on_answer = then_wait
    short = replace(study, round_timeout=3.0)
    (folder.path / "study.json").write_text(json.dumps(short.to_dict()))
    with pytest.raises(QuorumMissed, match="hospital-0: Unproven: "):
        network.ask(folder, coordinator)
    assert load_checkpoint(folder.checkpoint, folder.study()).server_round == 1


def test_a_sites_own_refusal_is_taken_by_its_name(
    folder: StudyFolder, study: Study, coordinator: Coordinator, network: Network
) -> None:
    changed = replace(study, local=replace(study.local, height=20))
    (folder.path / "study.json").write_text(json.dumps(changed.to_dict()))
    (folder.path / "reference.npz").unlink()
    with pytest.raises(QuorumMissed, match="hospital-0: RequestRefused: The study trains on images"):
        network.ask(folder, coordinator)
    assert len(_answers(network, "refusal")) == 2
    assert _events(folder, "unproven") == []
    entry = _log(folder, 0)[-1]
    assert [field["name"] for field in entry["fields"]] == ["error.code", "error.reason", ENVELOPE]


# Their parts


def test_what_is_packed_is_unpacked_and_nothing_else_is() -> None:
    content, key = unpack_question(pack_question(RecordDict(), b"key"))
    assert (dict(content), key) == ({}, b"key")
    error = unpack_refusal(pack_refusal(Error(REFUSED, "no")))
    assert (error.code, error.reason) == (REFUSED, "no")
    for data in (b"", b"[]", b'{"code":1}', b'{"code":"1","reason":""}', b'{"code":1,"reason":""} '):
        with pytest.raises(PayloadRefused):
            unpack_refusal(data)
    with pytest.raises(EnvelopeRefused):
        envelope_in(RecordDict())
    assert about(RecordDict()) == ("", 0)
