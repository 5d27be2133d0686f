"""What leaves a hospital through Flower: its public profile, its replies, and refusals without a secret."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedward.client import hospital as hospital_module
from fedward.client.app import app
from fedward.client.hospital import create_hospital, open_hospital
from fedward.client.replies import ReplyStore
from fedward.common.codec import encode
from fedward.common.config import LocalSettings
from fedward.common.datasets import ImageDataset, Split
from fedward.common.errors import (
    BudgetRefused,
    DatasetRefused,
    LedgerRefused,
    OutputRefused,
    RequestRefused,
    UnknownName,
)
from fedward.common.logs import JsonLines
from fedward.common.messages import CONFIG, LATENTS, REFUSED, TrainReply, TrainRequest, refusal_text
from fedward.common.models import build_student, parameter_count
from fedward.common.thin_app import STUDY_FOLDER

SECRET = "Jane Doe, born 1 May 1970"


@pytest.fixture(autouse=True)
def _flower() -> Iterator[None]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    open_hospital.cache_clear()
    yield
    open_hospital.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, phantom: ImageDataset) -> Path:
    records = Split(phantom.train.images[:17], phantom.train.labels[:17])
    create_hospital(tmp_path / "hospitals" / "0", "hospital-0", records, 50.0, 1e-5, None)
    return tmp_path


@pytest.fixture
def send(folder: Path) -> Callable[..., Message]:
    """send(content, message_type) -> the reply of the node with partition 0."""

    def call(content: RecordDict, message_type: str = "train", partition: int = 0) -> Message:
        context = Context(1, 100, {"partition-id": partition}, RecordDict(), {STUDY_FOLDER: str(folder)})
        return app(Message(content, 100, message_type), context)

    return call


@pytest.fixture
def request_records(make_local: Callable[..., LocalSettings]) -> RecordDict:
    local = make_local()
    vector = np.zeros(parameter_count(build_student(local.spec)), np.float32)
    vectors = {LATENTS: encode(vector, "fp32")}
    return TrainRequest("study", 1, local, 0.5, ("fp32", "fp32"), vectors).to_records()


def _bytes(message: Message) -> bytes:
    """All of a message in every form that it may travel in."""
    parts = [message.error.reason or ""] if message.has_error() else [repr(message.content)]
    whole = pickle.dumps(message.__dict__) + repr(message.__dict__).encode() + "".join(parts).encode()
    return whole + message.deflate()


def test_enrolment_says_the_name_and_the_declared_count_and_nothing_else(
    send: Callable[..., Message],
) -> None:
    reply = send(RecordDict(), "query")
    assert not reply.content.array_records
    assert not reply.content.metric_records
    assert list(reply.content.config_records) == [CONFIG]
    profile = json.loads(reply.content.config_records[CONFIG]["profile"])
    assert profile == {"name": "hospital-0", "num_examples": 20}  # of 17 records


def test_a_round_is_answered(send: Callable[..., Message], request_records: RecordDict) -> None:
    reply = TrainReply.from_records(send(request_records).content)
    assert (reply.hospital, reply.num_examples, reply.server_round) == ("hospital-0", 20, 1)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        KeyError(SECRET),
        RuntimeError(f"CUDA error near {SECRET}"),
        MemoryError(SECRET),
        AssertionError(SECRET),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
        Exception(SECRET, {"patient": SECRET}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_text_of_an_exception_never_leaves(
    send: Callable[..., Message],
    request_records: RecordDict,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(hospital_module, "train", fail)
    reply = send(request_records)
    assert reply.error.code == REFUSED
    assert refusal_text(reply) == (
        "RequestRefused",
        "The hospital's round failed; see the hospital's own log.",
    )
    for word in ("Jane", "1970", "Traceback", type(error).__name__, "test_client_app"):
        assert word.encode() not in _bytes(reply)
    # Nor does it stand in the hospital's own log, which may be forwarded: that has its kind and place.
    (line,) = map(JsonLines().format, caplog.records)
    assert "Jane" not in line
    assert json.loads(line)["error"] == type(error).__name__


@pytest.mark.parametrize("kind", [DatasetRefused, LedgerRefused, OutputRefused, UnknownName])
def test_a_refusal_about_the_hospitals_own_affairs_leaves_by_its_name_alone(
    send: Callable[..., Message],
    request_records: RecordDict,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
) -> None:
    """Such sentences name files, data sets, counts: "labels are out of range: 0 to 7"."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise kind(f"{SECRET}: 17 images, but 16 labels.")

    monkeypatch.setattr(ReplyStore, "store", refuse)
    reply = send(request_records)
    name, sentence = refusal_text(reply)
    assert (reply.error.code, name) == (REFUSED, kind.__name__)
    assert "log" in sentence
    assert b"Jane" not in _bytes(reply)


@pytest.mark.parametrize("kind", [BudgetRefused, RequestRefused])
def test_a_refusal_about_the_request_leaves_with_its_sentence(
    send: Callable[..., Message],
    request_records: RecordDict,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise kind("Ask for fewer steps.")

    monkeypatch.setattr(ReplyStore, "store", refuse)
    assert refusal_text(send(request_records)) == (kind.__name__, "Ask for fewer steps.")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no folder": shutil.rmtree,
    "no profile": lambda folder: (folder / "hospital.json").unlink(),
    "a profile that is no JSON": lambda folder: (folder / "hospital.json").write_text(SECRET),
    "a profile of another version": lambda folder: (folder / "hospital.json").write_text('{"patient": 1}'),
    "no records": lambda folder: (folder / "data.npz").unlink(),
    "records cut short": lambda folder: (folder / "data.npz").write_bytes(
        (folder / "data.npz").read_bytes()[:300]
    ),
    "no ledger": lambda folder: next(folder.glob("budget/*/ledger.jsonl")).unlink(),
    "a ledger of something else": lambda folder: next(folder.glob("budget/*/ledger.jsonl")).write_text(
        SECRET
    ),
    "no image key": lambda folder: (folder / "budget" / "image.key").unlink(),
    "a reply that cannot be read": lambda folder: (
        ReplyStore(folder / "replies")._path("study", 1, "train").mkdir()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("message_type", ["train", "query"])
def test_a_damaged_state_folder_is_refused_without_a_path_or_a_content(
    folder: Path,
    send: Callable[..., Message],
    request_records: RecordDict,
    damage: str,
    message_type: str,
) -> None:
    DAMAGES[damage](folder / "hospitals" / "0")
    reply = send(request_records, message_type)
    if message_type == "train" or reply.has_error():
        assert reply.error.code == REFUSED
    for word in ("Jane", str(folder), "hospitals", ".npz", ".json", ".key", ".reply"):
        assert word.encode() not in _bytes(reply)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({CONFIG: ConfigRecord({"request": b"{}"})}),
        RecordDict({CONFIG: ConfigRecord({"request": 7})}),
        RecordDict({"model": ConfigRecord({})}),
    ],
)
def test_a_malformed_request_is_refused_by_name(send: Callable[..., Message], content: RecordDict) -> None:
    reply = send(content)
    assert reply.error.code == REFUSED
    assert refusal_text(reply)[0] == "PayloadRefused"


def test_a_node_without_a_hospital_is_refused_and_makes_no_folder(
    folder: Path, send: Callable[..., Message], request_records: RecordDict
) -> None:
    before = sorted(folder.rglob("*"))
    for message_type in ("query", "train"):
        assert send(request_records, message_type, partition=5).error.code == REFUSED
    assert sorted(folder.rglob("*")) == before


def test_ctrl_c_is_not_taken_for_a_failed_round(
    send: Callable[..., Message], request_records: RecordDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hospital_module, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        send(request_records)
