"""Whatever a hospital, or a stranger, replies: it counts by its declared weight, or is refused by name."""

import itertools
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import zstandard
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedward.common.codec import Payload, Vector, decode, encode
from fedward.common.config import EnrolledHospital, LocalSettings, Study
from fedward.common.errors import OutputRefused, QuorumMissed, RequestRefused
from fedward.common.files import canonical_json
from fedward.common.messages import CONFIG, LATENTS, UPDATE, TrainReply, TrainRequest, refusal_reply
from fedward.common.models import frozen_count
from fedward.common.rounding import uplink_step
from fedward.server.checkpoint import Progress
from fedward.server.strategy import FedwardAvg, released_latents

COUNT = 40
NODES = (100, 101, 102)
WEIGHTS = (30, 50, 20)
SUPERLINK = 1


class ConnectedNodes(Grid):
    """As much of a Grid as `configure_train` asks for."""

    def __init__(self, *node_ids: int) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> list[int]:
        return list(self._node_ids)

    def _unused(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    set_run = create_message = push_messages = pull_messages = send_and_receive = _unused
    run = property(_unused)


@pytest.fixture(autouse=True)
def _task_identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK


@pytest.fixture
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(), WEIGHTS)


def _strategy(study: Study, count: int = COUNT, **arguments: Any) -> FedwardAvg:
    nodes = dict(zip(NODES, study.hospitals, strict=True))
    return FedwardAvg(study, Progress.start(np.zeros(count, np.float32)), nodes, **arguments)


def _update(seed: int, count: int = COUNT) -> Vector:
    return (0.01 * np.random.default_rng(seed).normal(size=count)).astype(np.float32)


def _question(node_id: int) -> Message:
    return Message(RecordDict(), node_id, "train")


def _reply(node: int = 0, **changes: Any) -> Message:
    """An honest reply of the node-th hospital to round 1, but for `changes`."""
    values: dict[str, Any] = {
        "study": "tiny study",
        "server_round": 1,
        "hospital": f"hospital-{node}",
        "num_examples": WEIGHTS[node],
        "codec": "fp32",
        "update": encode(_update(node), "fp32"),
    }
    return Message(TrainReply(**(values | changes)).to_records(), reply_to=_question(NODES[node]))


def _honest() -> list[Message]:
    return [_reply(node) for node in range(3)]


def _open(strategy: FedwardAvg, *nodes: int, server_round: int = 1) -> list[Message]:
    grid = ConnectedNodes(*(nodes or NODES))
    return list(strategy.configure_train(server_round, strategy.arrays(), ConfigRecord(), grid))


def _latents_after(study: Study, replies: list[Message]) -> Vector:
    strategy = _strategy(study)
    _open(strategy)
    strategy.aggregate_train(1, replies)
    return strategy.progress.latents


def test_it_is_flowers_own_fedavg(study: Study) -> None:
    assert isinstance(_strategy(study), FedAvg)


def test_updates_count_by_the_counts_declared_at_enrolment_in_any_order(study: Study) -> None:
    expected = np.average([_update(node) for node in range(3)], axis=0, weights=WEIGHTS)
    orders = itertools.permutations(range(3))
    found = [_latents_after(study, [_reply(node) for node in order]) for order in orders]
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2.0**-24)
    assert len({latents.tobytes() for latents in found}) == 1


def _raw(values: np.ndarray) -> Payload:
    """An fp32 payload of whatever values; `encode` would refuse those that are not finite."""
    header = struct.pack("<4sB3xQ", b"FWD1", 1, len(values))
    return np.frombuffer(header + values.astype("<f4").tobytes(), np.uint8)


def _with(value: float) -> Payload:
    return _raw(np.where(np.arange(COUNT) == 7, value, 0.0))


def _array_reply(data: bytes) -> Message:
    """A reply whose array's bytes are `data` in place of a numpy file."""
    reply = _reply()
    array = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=data)
    reply.content.array_records[UPDATE][LATENTS] = array
    return reply


def _npz() -> bytes:
    buffer = BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def _npy_that_claims(count: int) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (count,)})
    return buffer.getvalue()


def _config_reply(value: Any) -> Message:
    reply = _reply()
    reply.content.config_records[CONFIG] = ConfigRecord({"reply": value})
    return reply


def _two_arrays() -> Message:
    reply = _reply()
    reply.content.array_records[UPDATE]["more"] = Array(encode(_update(9), "fp32"))
    return reply


def _contentless() -> Message:
    question = _question(NODES[0])
    reply = Message(RecordDict(), reply_to=question)
    reply.__dict__["_content"] = None
    return reply


BAD_REPLIES = {
    "NaN": (lambda: _reply(update=_with(np.nan)), "PayloadRefused", "NaN or infinite"),
    "infinity": (lambda: _reply(update=_with(np.inf)), "PayloadRefused", "NaN or infinite"),
    "too large": (lambda: _reply(update=_with(400.0)), "UpdateRefused", "norm is 400"),
    "beyond the grid": (lambda: _reply(update=_with(3e38)), "UpdateRefused", "norm"),
    "a wrong shape": (lambda: _reply(update=encode(_update(0, COUNT + 1), "fp32")), "PayloadRefused", "41"),
    "no values": (lambda: _reply(update=encode(_update(0, 0), "fp32")), "PayloadRefused", "0 values"),
    "cut short": (lambda: _reply(update=encode(_update(0), "fp32")[:-1]), "PayloadRefused", "bytes"),
    "another round": (lambda: _reply(server_round=2), "UpdateRefused", "of round 2"),
    "another study": (lambda: _reply(study="other"), "UpdateRefused", "of study 'other'"),
    "another's name": (lambda: _reply(hospital="hospital-1"), "UpdateRefused", "of sender 'hospital-1'"),
    "another count": (lambda: _reply(num_examples=10**6), "UpdateRefused", "declared count 1000000"),
    "another codec": (
        lambda: _reply(codec="int8", update=encode(_update(0), "int8")),
        "UpdateRefused",
        "of codec 'int8'",
    ),
    "a codec by another name": (lambda: _reply(update=encode(_update(0), "int8")), "PayloadRefused", "fp32"),
    "an empty record": (
        lambda: Message(RecordDict(), reply_to=_question(NODES[0])),
        "PayloadRefused",
        "no readable",
    ),
    "no content": (_contentless, "UpdateRefused", "cannot be read"),
    "no update": (
        lambda: Message(
            RecordDict({UPDATE: ArrayRecord(), CONFIG: _reply().content.config_records[CONFIG]}),
            reply_to=_question(NODES[0]),
        ),
        "PayloadRefused",
        "",
    ),
    "two updates": (_two_arrays, "PayloadRefused", ""),
    "a header of another type": (lambda: _config_reply(7), "PayloadRefused", "no readable"),
    "a header that is no JSON": (lambda: _config_reply(b"\xff"), "PayloadRefused", "no readable"),
    "a header of JSON's depths": (lambda: _config_reply(b"[" * 10**6), "PayloadRefused", "no readable"),
    "a header with another field": (
        lambda: _config_reply(canonical_json({"weight": 10**9})),
        "PayloadRefused",
        "other fields",
    ),
    "an archive for an array": (lambda: _array_reply(_npz()), "Refused", ""),
    "a broken archive": (lambda: _array_reply(b"PK\x03\x04aaaa"), "Refused", ""),
    "a pickle": (lambda: _array_reply(b"\x80\x04K\x01."), "Refused", ""),
    "an array of a petabyte": (lambda: _array_reply(_npy_that_claims(10**15)), "Refused", ""),
    "an array beyond numbers": (lambda: _array_reply(_npy_that_claims(10**30)), "Refused", ""),
    "an error": (
        lambda: Message(Error(2, "ValueError: patient 1234"), reply_to=_question(NODES[0])),
        "HospitalFailed",
        "error 2",
    ),
    "a refusal": (
        lambda: refusal_reply(RequestRefused("Not on Sundays."), _question(NODES[0])),
        "RequestRefused",
        "Not on Sundays.",
    ),
}


@pytest.mark.parametrize("case", BAD_REPLIES)
@pytest.mark.parametrize("position", [0, 2])
def test_a_bad_reply_is_refused_by_name_and_does_no_harm(study: Study, case: str, position: int) -> None:
    make, name, words = BAD_REPLIES[case]
    replies = [_reply(1), _reply(2)]
    replies.insert(position, make())
    strategy = _strategy(study)
    _open(strategy)
    strategy.aggregate_train(1, iter(replies))
    (lost,) = strategy.lost
    assert lost.hospital == "hospital-0"
    assert name in lost.name
    assert words in lost.message
    assert "patient" not in lost.message
    assert strategy.progress.latents.tobytes() == _latents_after(study, [_reply(1), _reply(2)]).tobytes()
    assert strategy.replies == 2


def test_a_hospital_that_says_nothing_is_lost_by_name(study: Study) -> None:
    strategy = _strategy(study)
    _open(strategy)
    strategy.aggregate_train(1, [_reply(1), _reply(2)])
    assert [(lost.hospital, lost.name) for lost in strategy.lost] == [("hospital-0", "NoReply")]


def test_a_hospital_that_is_away_is_not_asked_and_named_so(study: Study) -> None:
    strategy = _strategy(study)
    messages = _open(strategy, 101, 102, 999)
    assert [message.metadata.dst_node_id for message in messages] == [101, 102]
    strategy.aggregate_train(1, [_reply(1), _reply(2)])
    assert [(lost.hospital, lost.name) for lost in strategy.lost] == [("hospital-0", "NotConnected")]


def test_of_two_replies_only_the_first_counts(study: Study) -> None:
    strategy = _strategy(study)
    _open(strategy)
    second = _reply(0, update=encode(_update(77), "fp32"))
    strategy.aggregate_train(1, [*_honest(), second])
    assert [(lost.hospital, lost.name) for lost in strategy.lost] == [("hospital-0", "UpdateRefused")]
    assert "twice" in strategy.lost[0].message
    assert strategy.progress.latents.tobytes() == _latents_after(study, _honest()).tobytes()
    assert strategy.replies == 3


def test_a_stranger_is_refused_by_its_node_even_with_a_perfect_reply(study: Study) -> None:
    forged = Message(_reply(0).content, reply_to=_question(777))
    strategy = _strategy(study)
    _open(strategy)
    strategy.aggregate_train(1, [forged, _reply(1), _reply(2)])
    assert ("node 777", "UnknownNode") in [(lost.hospital, lost.name) for lost in strategy.lost]
    assert ("hospital-0", "NoReply") in [(lost.hospital, lost.name) for lost in strategy.lost]
    assert strategy.progress.latents.tobytes() == _latents_after(study, [_reply(1), _reply(2)]).tobytes()


def test_flowers_own_error_is_put_down_to_the_hospital_that_was_asked(study: Study) -> None:
    """The SuperLink reports in its own name that a node is gone; only the question tells which."""
    strategy = _strategy(study)
    messages = _open(strategy)

    def pushed_and_pulled() -> Iterator[Message]:
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"id {number}"
        gone = Message(Error(5, "node unavailable"), reply_to=messages[0])
        gone.metadata.__dict__["_src_node_id"] = SUPERLINK
        yield from [gone, _reply(1), _reply(2)]

    strategy.aggregate_train(1, pushed_and_pulled())
    assert [(lost.hospital, lost.name) for lost in strategy.lost] == [("hospital-0", "HospitalFailed")]


def test_a_missed_quorum_names_its_reasons_and_leaves_the_state_as_it_was(study: Study) -> None:
    strategy = _strategy(study)
    _open(strategy)
    before, bytes_before = strategy.progress, strategy.progress.latents.tobytes()
    replies = [BAD_REPLIES["NaN"][0](), _reply(1), refusal_reply(RequestRefused("No."), _question(102))]
    with pytest.raises(QuorumMissed) as caught:
        strategy.aggregate_train(1, replies)
    for words in (
        "Round 1",
        "1 usable",
        "quorum",
        "hospital-0: PayloadRefused",
        "hospital-2: RequestRefused",
    ):
        assert words in str(caught.value)
    assert "--resume" in str(caught.value)
    assert strategy.progress is before
    assert strategy.progress.latents.tobytes() == bytes_before
    # The same round, asked again, is as if nothing had been.
    _open(strategy)
    strategy.aggregate_train(1, _honest())
    assert strategy.progress.latents.tobytes() == _latents_after(study, _honest()).tobytes()
    assert strategy.lost == []


@pytest.mark.parametrize("cases", [[], ["NaN"], ["an error"]])
def test_when_all_hospitals_fail_the_round_fails_by_name(study: Study, cases: list[str]) -> None:
    strategy = _strategy(study)
    _open(strategy)
    with pytest.raises(QuorumMissed, match="0 usable"):
        strategy.aggregate_train(1, [BAD_REPLIES[case][0]() for case in cases])
    assert strategy.progress.server_round == 0
    assert len(strategy.lost) == 3


def test_a_hostile_sentence_is_cut_before_it_reaches_a_record(study: Study) -> None:
    hostile = Message(Error(100, "N" * 10**6 + ": " + "x" * 10**7), reply_to=_question(NODES[0]))
    named = _reply(1, hospital="h" * 10**6)
    strategy = _strategy(study)
    _open(strategy)
    with pytest.raises(QuorumMissed) as caught:
        strategy.aggregate_train(1, [hostile, named])
    assert len(str(caught.value)) < 5000


def test_a_full_disk_at_the_coordinator_is_not_put_down_to_a_hospital(study: Study) -> None:
    def fail(name: str) -> None:
        raise OutputRefused("The disk is full.")

    strategy = _strategy(study, on_reply=fail)
    _open(strategy)
    with pytest.raises(OutputRefused):
        strategy.aggregate_train(1, _honest())


def test_one_reply_at_a_time_is_in_memory(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    few, many = (_peak_bytes(make_study(make_local(), [20] * hospitals)) for hospitals in (3, 30))
    assert many < 1.1 * few


def _peak_bytes(study: Study) -> int:
    count, node_ids = 100_000, range(100, 100 + len(study.hospitals))

    def replies() -> Iterator[Message]:
        for node_id, hospital in zip(node_ids, study.hospitals, strict=True):
            update = encode(_update(node_id, count), "fp32")
            content = TrainReply(study.name, 1, hospital.name, hospital.num_examples, "fp32", update)
            yield Message(content.to_records(), reply_to=_question(node_id))

    nodes = dict(zip(node_ids, study.hospitals, strict=True))
    strategy = FedwardAvg(study, Progress.start(np.zeros(count, np.float32)), nodes)
    _open(strategy, *node_ids)
    tracemalloc.start()
    strategy.aggregate_train(1, replies())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert strategy.lost == []
    return peak


def test_every_connected_hospital_gets_the_same_request(study: Study) -> None:
    strategy = _strategy(study)
    requests = [TrainRequest.from_records(message.content) for message in _open(strategy)]
    assert [request.content_digest for request in requests] == [requests[0].content_digest] * 3
    assert requests[0].study == "tiny study"
    assert requests[0].settings == study.local
    np.testing.assert_array_equal(decode(requests[0].vectors[LATENTS], COUNT, "fp32"), np.zeros(COUNT))


def test_momentum_and_the_mean_of_the_last_rounds_by_hand(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    study = make_study(
        make_local(rounds=3), WEIGHTS, server_momentum=0.5, server_learning_rate=2.0, averaged_rounds=2
    )
    strategy = _strategy(study)
    for server_round, value in ((1, 0.25), (2, 0.5), (3, 0.125)):
        update = encode(np.full(COUNT, value, np.float32), "fp32")
        _open(strategy, server_round=server_round)
        strategy.aggregate_train(
            server_round, [_reply(node, server_round=server_round, update=update) for node in range(3)]
        )
    # velocity .25, .625, .4375; latents .5, 1.75, 2.625
    np.testing.assert_array_equal(strategy.progress.latents, np.full(COUNT, 2.625, np.float32))
    np.testing.assert_array_equal(released_latents(strategy.progress, study), np.full(COUNT, 2.1875))


def test_the_pull_of_ewc_is_allowed_and_no_more(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    study = make_study(make_local(ewc_lambda=1e9), WEIGHTS)
    anchor = np.full(COUNT, 50.0, np.float32)
    extras = {"anchor": encode(anchor, "fp32"), "fisher": encode(np.ones(COUNT, np.float32), "fp32")}
    strategy = _strategy(study, extras=extras)
    _open(strategy)
    to_the_anchor, past_it = encode(anchor, "fp32"), encode(2 * anchor, "fp32")
    strategy.aggregate_train(
        1, [_reply(0, update=to_the_anchor), _reply(1, update=to_the_anchor), _reply(2, update=past_it)]
    )
    assert [(lost.hospital, lost.name) for lost in strategy.lost] == [("hospital-2", "UpdateRefused")]
    np.testing.assert_allclose(strategy.progress.latents, anchor, rtol=1e-6)


def test_hospitals_answer_relative_to_what_they_were_sent(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    """An int8 downlink rounds the model: the anchor's distance is measured from the rounded one."""
    study = make_study(make_local(ewc_lambda=1e9), WEIGHTS, downlink_codec="int8")
    latents = np.linspace(-100, 100, COUNT).astype(np.float32)
    anchor = decode(encode(np.full(COUNT, 300.0, np.float32), "int8"), COUNT, "int8")
    extras = {"anchor": encode(anchor, "int8"), "fisher": encode(np.ones(COUNT, np.float32), "int8")}
    nodes = dict(zip(NODES, study.hospitals, strict=True))
    strategy = FedwardAvg(study, Progress.start(latents), nodes, extras)
    request = TrainRequest.from_records(_open(strategy)[0].content)
    sent = decode(request.vectors[LATENTS], COUNT, "int8")
    assert 0 < np.abs(sent - latents).max() < 1
    whole_way = encode(anchor - sent, "fp32")
    strategy.aggregate_train(1, [_reply(node, update=whole_way) for node in range(3)])
    assert strategy.lost == []
    np.testing.assert_allclose(strategy.progress.latents, latents + (anchor - sent), rtol=1e-6)


def test_nothing_but_enrolled_hospitals_has_a_weight(study: Study) -> None:
    strategy = _strategy(study)
    _open(strategy)
    _, metrics = strategy.aggregate_train(1, _honest())
    assert metrics is not None
    assert metrics["num_examples"] == sum(hospital.num_examples for hospital in study.hospitals)
    assert isinstance(study.hospitals[0], EnrolledHospital)


# Updates rounded at a part of the noise


@pytest.fixture
def coded(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(noise_multiplier=1.0), WEIGHTS, uplink_codec="coded2", quorum=1)


def _step(study: Study, node: int) -> float:
    step = uplink_step("coded2", study.local, study.learning_rate_at(1), WEIGHTS[node])
    assert step is not None
    return step


def _coded(study: Study, node: int, update: Vector, step: float | None = None) -> Message:
    packed = encode(update, "coded2", step or _step(study, node))
    return _reply(node, codec="coded2", update=packed)


def test_coded_updates_count_as_they_were_rounded_each_at_its_own_sites_step(coded: Study) -> None:
    updates = [
        (_step(coded, node) * np.random.default_rng(node).integers(-3, 4, COUNT)).astype(np.float32)
        for node in range(3)
    ]
    expected = np.average(updates, axis=0, weights=WEIGHTS)
    replies = [_coded(coded, node, update) for node, update in enumerate(updates)]
    np.testing.assert_allclose(_latents_after(coded, replies), expected, rtol=1e-6, atol=2.0**-24)


BAD_CODES: dict[str, tuple[Callable[[Study], Message], str]] = {
    "another site's step": (lambda study: _coded(study, 0, _update(0), _step(study, 1)), "agreed step"),
    "a bomb": (
        lambda study: _reply(
            codec="coded2",
            update=np.concatenate(
                [
                    encode(np.zeros(COUNT, np.float32), "coded2", _step(study, 0))[:24],
                    np.frombuffer(zstandard.ZstdCompressor().compress(bytes(1 << 26)), np.uint8),
                ]
            ),
        ),
        "do not fit",
    ),
    "a large norm": (lambda study: _coded(study, 0, np.full(COUNT, 400, np.float32)), "norm is"),
}


@pytest.mark.parametrize("case", BAD_CODES)
def test_one_bad_coded_update_is_lost_by_name_and_the_others_count(coded: Study, case: str) -> None:
    make, words = BAD_CODES[case]
    strategy = _strategy(coded)
    _open(strategy)
    zero = np.zeros(COUNT, np.float32)
    strategy.aggregate_train(1, [make(coded), _coded(coded, 1, zero), _coded(coded, 2, zero)])
    assert [lost.hospital for lost in strategy.lost] == ["hospital-0"]
    assert words in strategy.lost[0].message
    assert strategy.replies == 2


@pytest.mark.parametrize("count", [1, 5])
def test_a_study_of_the_head_moves_the_head_alone(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings], count: int
) -> None:
    local = make_local(trained="head")
    frozen = frozen_count(local.spec, "head")
    strategy = _strategy(make_study(local, WEIGHTS), frozen + count)
    _open(strategy)
    updates = [_update(node, count) for node in range(3)]
    strategy.aggregate_train(1, [_reply(node, update=encode(updates[node], "fp32")) for node in range(3)])
    after = strategy.progress.latents
    assert not after[:frozen].any()
    assert np.allclose(after[frozen:], np.average(updates, axis=0, weights=WEIGHTS), atol=1e-6)


def test_an_update_of_the_whole_student_is_refused_in_a_study_of_the_head(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    local = make_local(trained="head")
    study, count = make_study(local, WEIGHTS), frozen_count(local.spec, "head") + 5
    strategy = _strategy(study, count)
    _open(strategy)
    whole = [_reply(node, update=encode(_update(node, count), "fp32")) for node in range(3)]
    with pytest.raises(QuorumMissed, match="5 are expected"):
        strategy.aggregate_train(1, whole)


# Models that travel as differences


def test_weights_that_nobody_trains_are_sent_once_and_then_cost_nothing(
    make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]
) -> None:
    """What the first model lost in 8 bits is not sent after it: the study starts from what hospitals got."""
    study = make_study(make_local(), WEIGHTS, downlink_codec="diff3")
    count, nodes = 20_000, dict(zip(NODES, study.hospitals, strict=True))
    start = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    strategy = FedwardAvg(study, Progress.start(start), nodes)
    update = np.zeros(count, np.float32)
    update[-100:] = np.random.default_rng(1).standard_normal(100) * 0.01
    sizes = []
    for server_round in (1, 2, 3):
        asked = [TrainRequest.from_records(one.content) for one in _open(strategy, server_round=server_round)]
        (digest,) = {one.replica.digest for one in asked if one.replica}
        replies = {"server_round": server_round, "update": encode(update, "fp32"), "replica": digest}
        strategy.aggregate_train(server_round, [_reply(node, **replies) for node in range(3)])
        assert strategy.lost == []
        sizes.append(len(asked[0].vectors[LATENTS]))
    assert sizes[0] > count
    assert max(sizes[1:]) < 300
    got = decode(encode(start, "int8"), count, "int8")
    assert strategy.progress.latents[:-100].tobytes() == got[:-100].tobytes()
    np.testing.assert_allclose(strategy.progress.latents[-100:], got[-100:] + 3 * update[-100:], atol=1e-6)
