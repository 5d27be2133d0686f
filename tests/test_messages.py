"""Messages: what is packed comes back through Flower's records, and nothing malformed gets past its name."""

import dataclasses
import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.errors import BudgetRefused, PayloadRefused, Refusal, SettingRefused, UnknownName
from fedward.common.files import canonical_json
from fedward.common.messages import (
    ANCHOR,
    CONFIG,
    FISHER,
    LATENTS,
    MODEL,
    REFUSED,
    TEACHER,
    UPDATE,
    Replica,
    TrainReply,
    TrainRequest,
    refusal_reply,
    refusal_text,
    wire_bytes,
)

SETTINGS = LocalSettings(
    student="ternary-cnn",
    channels=1,
    height=28,
    width=28,
    classes=("normal", "pneumonia"),
    task="binary",
    unit="image",
    sample_rate=0.25,
    local_steps=2,
    rounds=60,
    noise_multiplier=1.1,
    max_grad_norm=1.0,
    target_delta=1e-5,
    views=1,
    augmentation="none",
    class_prior=(0.25, 0.75),
    ewc_lambda=1.0,
    distillation_alpha=0.2,
    distillation_temperature=2.0,
)
Records = Callable[[], RecordDict]


def packed(*values: float) -> np.ndarray:
    return encode(np.array(values, np.float32), "fp32")


def request(**changes: Any) -> TrainRequest:
    values: dict[str, Any] = {
        "study": "chest",
        "server_round": 3,
        "settings": SETTINGS,
        "learning_rate": 0.5,
        "codec": ("fp32", "int8"),
        "vectors": {LATENTS: packed(1, 2), ANCHOR: packed(3, 4), FISHER: packed(5, 6), TEACHER: packed(7, 8)},
    }
    return TrainRequest(**(values | changes))


def reply(**changes: Any) -> TrainReply:
    values: dict[str, Any] = {
        "study": "chest",
        "server_round": 3,
        "hospital": "north",
        "num_examples": 590,
        "codec": "int8",
        "update": packed(1, 2, 3),
    }
    return TrainReply(**(values | changes))


def header_of(content: RecordDict, key: str) -> dict[str, Any]:
    return json.loads(content.config_records[CONFIG][key])  # type: ignore[arg-type, no-any-return]


def with_header(content: RecordDict, key: str, header: object) -> RecordDict:
    content.config_records[CONFIG] = ConfigRecord({key: canonical_json(header)})
    return content


def with_array(content: RecordDict, record: str, name: str, array: Array) -> RecordDict:
    arrays = dict(content.array_records[record].items())
    content.array_records[record] = ArrayRecord(arrays | {name: array})
    return content


def raw_array(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)


def same(one: Any, other: Any) -> bool:
    left, right = dict(one.__dict__), dict(other.__dict__)
    for field in ("vectors", "update"):
        a, b = left.pop(field, {}), right.pop(field, {})
        a, b = (a, b) if isinstance(a, dict) else ({"": a}, {"": b})
        if a.keys() != b.keys() or any(a[k].tobytes() != b[k].tobytes() for k in a):
            return False
    return bool(left == right)


@settings(max_examples=25, deadline=None)
@given(
    st.text("aé漢-", min_size=1, max_size=9),
    st.integers(1, 60),
    st.floats(1e-9, 1e4),
    st.lists(st.sampled_from([LATENTS, ANCHOR, FISHER, TEACHER]), unique=True),
)
def test_a_request_comes_back_through_flowers_records(
    study: str, server_round: int, learning_rate: float, names: list[str]
) -> None:
    vectors = {name: packed(*range(index)) for index, name in enumerate(names)}
    sent = request(study=study, server_round=server_round, learning_rate=learning_rate, vectors=vectors)
    received = TrainRequest.from_records(sent.to_records())
    assert same(received, sent)
    assert received.content_digest == sent.content_digest


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=9), st.integers(1, 10**6), st.binary(min_size=1, max_size=50))
def test_a_reply_comes_back_through_flowers_records(hospital: str, count: int, data: bytes) -> None:
    sent = reply(hospital=hospital, num_examples=count, update=np.frombuffer(data, np.uint8))
    assert same(TrainReply.from_records(sent.to_records()), sent)


def test_an_update_travels_as_one_array() -> None:
    content = reply().to_records()
    assert [list(record) for record in content.array_records.values()] == [[LATENTS]]
    assert list(content.metric_records) == []


CHANGED_SETTINGS: dict[str, Any] = {
    "student": "fp32-cnn",
    "channels": 3,
    "height": 32,
    "width": 32,
    "classes": ("normal", "other"),
    "task": "multi-label",
    "sample_rate": 0.26,
    "local_steps": 3,
    "rounds": 61,
    "noise_multiplier": 1.2,
    "max_grad_norm": 1.5,
    "target_delta": 2e-5,
    "views": 2,
    "augmentation": "shift",
    "class_prior": None,
    "ewc_lambda": 2.0,
    "distillation_alpha": 0.3,
    "distillation_temperature": 3.0,
    "metric_noise_multiplier": 5.0,
    "fisher_noise_multiplier": 5.0,
    "widths": (16, 64, 8),
}
CHANGED_TOGETHER: list[
    dict[str, Any]
] = [  # a setting that is refused without another: without it, and with it
    {"ewc_lambda": 0.0},
    {"ewc_lambda": 0.0, "trained": "head"},
    {"student": "int8-cnn"},
    {"student": "int8-cnn", "bits": (8, 4, 2, 8)},
]


def test_the_digest_changes_with_every_field() -> None:
    changes = [{name: value} for name, value in CHANGED_SETTINGS.items()] + CHANGED_TOGETHER
    changed = {name for some in changes for name in some}
    assert changed == {field.name for field in dataclasses.fields(LocalSettings)} - {"unit"}
    others = [request(settings=dataclasses.replace(SETTINGS, **some)) for some in changes]
    others += [
        request(study="chest2"),
        request(server_round=4),
        request(learning_rate=0.25),
        request(codec=("int8", "int8")),
        request(codec=("fp32", "fp32")),
        request(codec=("int8", "fp32")),
    ]
    digests = {other.content_digest for other in [request(), *others]}
    assert len(digests) == len(others) + 1


def test_the_digest_changes_with_every_vector_its_name_and_each_of_its_bytes() -> None:
    whole = request()
    digests = {whole.content_digest}
    for name, vector in whole.vectors.items():
        others = {key: value for key, value in whole.vectors.items() if key != name}
        digests.add(request(vectors=others).content_digest)
        digests.add(request(vectors=others | {f"{name}2": vector}).content_digest)
        for position in range(len(vector)):
            changed = vector.copy()
            changed[position] ^= 1
            digests.add(request(vectors=others | {name: changed}).content_digest)
    swapped = whole.vectors | {ANCHOR: whole.vectors[FISHER], FISHER: whole.vectors[ANCHOR]}
    digests.add(request(vectors=swapped).content_digest)
    assert len(digests) == 1 + sum(2 + len(vector) for vector in whole.vectors.values()) + 1


def test_the_digest_does_not_depend_on_the_order_of_vectors() -> None:
    vectors = request().vectors
    assert request(vectors=dict(reversed(vectors.items()))).content_digest == request().content_digest


# Models that travel as differences

ONE, TWO, THREE = "1" * 64, "2" * 64, "f" * 64


def differing(base: str = ONE, digest: str = TWO, **changes: Any) -> TrainRequest:
    return request(**({"codec": ("diff3", "int8"), "replica": Replica(digest, base)} | changes))


@pytest.mark.parametrize("base", ["", ONE])
def test_a_request_names_its_model_and_the_one_that_it_is_the_difference_to(base: str) -> None:
    sent = differing(base, replica=Replica(TWO, base, {TEACHER: THREE}))
    received = TrainRequest.from_records(sent.to_records())
    assert same(received, sent)
    assert received.replica == Replica(TWO, base, {TEACHER: THREE})
    assert received.content_digest == sent.content_digest


def test_the_digest_is_of_the_model_and_not_of_the_way_it_came() -> None:
    first = differing().content_digest
    assert differing("", vectors={LATENTS: packed(9)}).content_digest == first
    assert differing(THREE).content_digest == first
    changed = [
        differing(digest=THREE),
        differing(codec=("diff4", "int8")),
        differing(replica=Replica(TWO, ONE, {ANCHOR: ONE})),
        differing(replica=Replica(TWO, ONE, {TEACHER: ONE})),
        differing(replica=Replica(TWO, ONE, {TEACHER: TWO})),
        differing(server_round=4),
    ]
    assert len({first, *(one.content_digest for one in changed)}) == 1 + len(changed)


BAD_REPLICAS: list[Any] = [
    None,
    "",
    ONE,
    [],
    {},
    {"base": ONE, "digest": ONE},
    {"base": ONE, "fixed": {}},
    {"digest": ONE, "fixed": {}},
    {"base": ONE, "digest": "", "fixed": {}},
    {"base": None, "digest": ONE, "fixed": {}},
    {"base": ONE[:-1], "digest": ONE, "fixed": {}},
    {"base": ONE, "digest": "g" * 64, "fixed": {}},
    {"base": ONE, "digest": ONE.replace("1", "A"), "fixed": {}},
    {"base": "../../etc/passwd", "digest": ONE, "fixed": {}},
    {"base": ONE, "digest": ONE, "fixed": {}, "more": 1},
    {"base": ONE, "digest": ONE, "fixed": []},
    {"base": ONE, "digest": ONE, "fixed": {LATENTS: ONE}},
    {"base": ONE, "digest": ONE, "fixed": {"other": ONE}},
    {"base": ONE, "digest": ONE, "fixed": {TEACHER: ""}},
    {"base": ONE, "digest": ONE, "fixed": {TEACHER: 5}},
]


@pytest.mark.parametrize("value", BAD_REPLICAS, ids=lambda value: repr(value)[:30])
def test_models_that_are_not_named_by_digests_are_refused(value: Any) -> None:
    content = differing().to_records()
    header = header_of(content, "request") | {"replica": value}
    with pytest.raises(PayloadRefused):
        TrainRequest.from_records(with_header(content, "request", header))


def test_a_model_is_named_where_it_travels_as_a_difference_and_nowhere_else() -> None:
    content = differing().to_records()
    unnamed = {name: value for name, value in header_of(content, "request").items() if name != "replica"}
    with pytest.raises(PayloadRefused, match="named by digests"):
        TrainRequest.from_records(with_header(content, "request", unnamed))
    with pytest.raises(PayloadRefused, match="comes in full"):
        TrainRequest.from_records(differing(codec=("fp32", "int8")).to_records())


def test_a_reply_names_the_model_that_its_hospital_holds_or_none() -> None:
    for sent in (reply(), reply(replica=ONE)):
        assert same(TrainReply.from_records(sent.to_records()), sent)
        assert same(TrainReply.from_bytes(sent.to_bytes()), sent)
    assert "replica" not in header_of(reply().to_records(), "reply")
    for value in ("", None, 5, "x" * 64, ONE[:-1]):
        content = reply().to_records()
        header = header_of(content, "reply") | {"replica": value}
        with pytest.raises(PayloadRefused, match="names a model"):
            TrainReply.from_records(with_header(content, "reply", header))


def no_config(content: RecordDict) -> RecordDict:
    del content.config_records[CONFIG]
    return content


def no_arrays(content: RecordDict, record: str) -> RecordDict:
    del content.array_records[record]
    return content


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3, np.uint8))
    return buffer.getvalue()


def claiming(count: int) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (count,)})
    return buffer.getvalue() + b"\0" * 8


def saved(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


BAD_ARRAYS = {
    "empty": raw_array(b""),
    "text": raw_array(b"not an array"),
    "cut": raw_array(saved(packed(1, 2))[:-1]),
    "header cut": raw_array(saved(packed(1, 2))[:40]),
    "claims 10^12 values": raw_array(claiming(10**12)),
    "claims 2^62 values": raw_array(claiming(2**62)),
    "a zip": raw_array(zipped()),
    "a broken zip": raw_array(b"PK\x03\x04" + bytes(50)),
    "a pickle": raw_array(saved(np.array([{"a": 1}], object), allow_pickle=True)),
    "a bare pickle": raw_array(b"\x80\x04K\x01."),
    "other bytes": raw_array(saved(packed(1)), stype="pickle"),
    "floats": Array(np.zeros(20, np.float32)),
    "signed": Array(np.zeros(20, np.int8)),
    "two axes": Array(np.zeros((4, 5), np.uint8)),
    "a scalar": Array(np.array(3, np.uint8)),
}


@pytest.mark.parametrize("array", BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_an_array_that_is_not_one_packed_vector_is_refused(array: Array) -> None:
    with pytest.raises(PayloadRefused):
        TrainRequest.from_records(with_array(request().to_records(), MODEL, ANCHOR, array))
    with pytest.raises(PayloadRefused):
        TrainReply.from_records(with_array(reply().to_records(), UPDATE, LATENTS, array))


BAD_CONFIGS: dict[str, ConfigRecord] = {
    "nothing": ConfigRecord({}),
    "another key": ConfigRecord({"other": b"{}"}),
    "text": ConfigRecord({"request": "{}", "reply": "{}"}),
    "a number": ConfigRecord({"request": 5, "reply": 5}),
    "a list": ConfigRecord({"request": [1, 2], "reply": [1, 2]}),
    "no json": ConfigRecord({"request": b"{", "reply": b"{"}),
    "no utf-8": ConfigRecord({"request": b"\xff\xfe{}", "reply": b"\xff\xfe{}"}),
    "empty": ConfigRecord({"request": b"", "reply": b""}),
    "an array": ConfigRecord({"request": b"[]", "reply": b"[]"}),
    "null": ConfigRecord({"request": b"null", "reply": b"null"}),
    "spaces": ConfigRecord({"request": b"{ }", "reply": b"{ }"}),
    "NaN": ConfigRecord({"request": b'{"study":NaN}', "reply": b'{"study":NaN}'}),
    "deep": ConfigRecord({"request": b"[" * 100_000, "reply": b"[" * 100_000}),
}


@pytest.mark.parametrize("config", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_an_unreadable_header_is_refused(config: ConfigRecord) -> None:
    for kind, content in ((TrainRequest, request().to_records()), (TrainReply, reply().to_records())):
        content.config_records[CONFIG] = config
        with pytest.raises(PayloadRefused, match="message"):
            kind.from_records(content)


def test_missing_records_are_refused() -> None:
    for damage in (no_config, lambda content: no_arrays(content, MODEL), lambda content: RecordDict()):
        with pytest.raises(PayloadRefused):
            TrainRequest.from_records(damage(request().to_records()))
    for damage in (no_config, lambda content: no_arrays(content, UPDATE), lambda content: RecordDict()):
        with pytest.raises(PayloadRefused):
            TrainReply.from_records(damage(reply().to_records()))


def test_a_request_is_not_read_as_a_reply_nor_a_reply_as_a_request() -> None:
    with pytest.raises(PayloadRefused):
        TrainReply.from_records(request().to_records())
    with pytest.raises(PayloadRefused):
        TrainRequest.from_records(reply().to_records())


BAD_FIELDS: dict[str, list[Any]] = {
    "study": [None, 3, "", [], {}, "x" * 10_000, "a\x00b"],
    "round": [None, "1", 1.0, True, 0, -1, 61, 10**30, []],
    "learning_rate": [None, "1", True, 0.0, -0.5, 1e5, 1e300, 10**400, []],
    "settings": [None, [], {}, {"student": "ternary-cnn"}, "x"],
    "codec": [
        None,
        5,
        "ab",
        [],
        ["fp32"],
        ["fp32"] * 3,
        {"0": "fp32"},
        ["fp32", "int4"],
        [1, 2],
        ["", []],
        ["coded4", "fp32"],
        ["fp32", "diff4"],
        ["diff4", "fp32"],
    ],
}
BAD_REQUEST_FIELDS = [(field, value) for field, values in BAD_FIELDS.items() for value in values]


@pytest.mark.parametrize(("field", "value"), BAD_REQUEST_FIELDS, ids=lambda case: repr(case)[:20])
def test_a_request_with_a_malformed_field_is_refused_by_name(field: str, value: Any) -> None:
    content = request().to_records()
    header = header_of(content, "request") | {field: value}
    with pytest.raises((PayloadRefused, SettingRefused, UnknownName)):
        TrainRequest.from_records(with_header(content, "request", header))


@pytest.mark.parametrize("name", ["sample_rate", "noise_multiplier", "max_grad_norm", "views", "rounds"])
def test_a_request_whose_settings_are_out_of_range_is_refused(name: str) -> None:
    content = request().to_records()
    header = header_of(content, "request")
    header["settings"][name] = -1
    with pytest.raises(SettingRefused, match=name):
        TrainRequest.from_records(with_header(content, "request", header))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, None) for name in ("study", "round", "hospital", "num_examples", "codec")],
        *[(name, []) for name in ("study", "round", "hospital", "num_examples", "codec")],
        ("round", "1"),
        ("round", True),
        ("num_examples", 1.5),
        ("num_examples", True),
        ("hospital", 3),
    ],
)
def test_a_reply_with_a_malformed_field_is_refused(field: str, value: Any) -> None:
    content = reply().to_records()
    header = header_of(content, "reply") | {field: value}
    with pytest.raises(PayloadRefused, match=field):
        TrainReply.from_records(with_header(content, "reply", header))


@pytest.mark.parametrize("name", ["study", "round", "codec"])
def test_missing_and_unknown_fields_are_refused(name: str) -> None:
    for kind, key, make in ((TrainRequest, "request", request), (TrainReply, "reply", reply)):
        header = header_of(make().to_records(), key)
        lacking = {field: value for field, value in header.items() if field != name}
        for damaged in (lacking, header | {"more": 1}):
            with pytest.raises(PayloadRefused, match="fields"):
                kind.from_records(with_header(make().to_records(), key, damaged))


def test_a_reply_carries_one_update_and_nothing_beside_it() -> None:
    content = with_array(reply().to_records(), UPDATE, ANCHOR, Array(packed(1)))
    with pytest.raises(PayloadRefused, match="one packed update"):
        TrainReply.from_records(content)
    content = reply().to_records()
    content.array_records[UPDATE] = ArrayRecord({})
    with pytest.raises(PayloadRefused, match="one packed update"):
        TrainReply.from_records(content)


def test_wire_bytes_count_the_arrays_and_the_header() -> None:
    content = reply(update=np.zeros(1000, np.uint8)).to_records()
    header = len(content.config_records[CONFIG]["reply"])  # type: ignore[arg-type]
    assert 1000 + header <= wire_bytes(content) <= 1000 + header + 256
    assert wire_bytes(RecordDict()) == 0


def received_message() -> Message:
    # What Flower's own processes set before a message is made.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(RecordDict(), 7, MessageType.TRAIN)


@pytest.mark.parametrize("refusal", [BudgetRefused("The budget: it is spent."), PayloadRefused("Cut: off.")])
def test_a_refusal_travels_by_name_and_sentence(refusal: Refusal) -> None:
    message = refusal_reply(refusal, received_message())
    assert message.has_error()
    assert refusal_text(message) == (refusal.name, str(refusal))


@pytest.mark.parametrize(
    "error",
    [
        Error(2, "Traceback: patient 4711"),
        Error(3),
        Error(REFUSED),
        Error(REFUSED, "patient 4711"),
        Error(8, ""),
    ],
)
def test_the_text_of_an_error_that_is_no_refusal_is_not_repeated(error: Error) -> None:
    name, sentence = refusal_text(Message(error, reply_to=received_message()))
    assert name == "HospitalFailed"
    assert "4711" not in sentence


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_in_an_array_raise_nothing_but_the_refusal(data: bytes) -> None:
    for head in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"PK\x05\x06", saved(packed(1))[:30]):
        content = with_array(reply().to_records(), UPDATE, LATENTS, raw_array(head + data))
        try:
            TrainReply.from_records(content)
        except PayloadRefused:
            continue


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_an_array_with_one_byte_changed_is_refused_or_is_still_one_packed_vector(data: st.DataObject) -> None:
    raw = bytearray(saved(packed(1, 2, 3)))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    content = with_array(reply().to_records(), UPDATE, LATENTS, raw_array(bytes(raw)))
    try:
        update = TrainReply.from_records(content).update
    except PayloadRefused:
        return
    assert update.dtype == np.uint8
    assert update.ndim == 1


def test_a_zip_bomb_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", saved(np.zeros(10_000_000, np.uint8)))
    content = with_array(reply().to_records(), UPDATE, LATENTS, raw_array(buffer.getvalue()))
    with pytest.raises(PayloadRefused):
        TrainReply.from_records(content)


def test_a_header_that_lies_about_its_own_length_is_refused() -> None:
    raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"{'descr': '|u1'"
    content = with_array(reply().to_records(), UPDATE, LATENTS, raw_array(raw))
    with pytest.raises(PayloadRefused):
        TrainReply.from_records(content)
