"""The task runner accepts only bundles that the site approved, by their bytes, and passes the rest on."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PullTaskInputResponse
from flwr.supercore.task_identity import TaskIdentity

from fedward.client import task_runner
from fedward.client.frames import Request
from fedward.client.task_runner import TaskRunner, _pull
from fedward.common.errors import PayloadRefused
from fedward.common.messages import refusal_text
from fedward.common.reply_codes import NO_DAEMON, NOT_APPROVED
from fedward.common.thin_app import bundle, bundle_hash

OWN = bundle_hash(bundle())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What reached the daemon."""
    found: list[Request] = []

    def ask(folder: Path, request: Request) -> RecordDict:
        found.append(request)
        return RecordDict({"c": ConfigRecord({"said": b"yes"})})

    monkeypatch.setattr(task_runner, "ask", ask)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return found


def _task(content: bytes, claimed: str = OWN) -> PullTaskInputResponse:
    return PullTaskInputResponse(fab=Fab(content=content, hash_str=claimed))


def _message(ttl: float = 50.0) -> Message:
    return Message(RecordDict({"c": ConfigRecord({"a": b"b"})}), 1, "train", ttl=ttl)


def _reply(content: bytes, approved: list[str], claimed: str = OWN) -> Message:
    runner = TaskRunner(Path("/nowhere"), "127.0.0.1:1", approved)
    return runner._reply(_task(content, claimed), _message())


def test_the_installed_versions_own_bundle_is_passed_on(asked: list[Request]) -> None:
    reply = _reply(bundle(), [OWN])
    assert reply.content.config_records["c"]["said"] == b"yes"
    assert (asked[0].kind, asked[0].content.config_records["c"]["a"]) == ("train", b"b")


def test_the_bundle_is_the_same_to_the_bit_each_time() -> None:
    assert bundle() == bundle()


@pytest.mark.parametrize("claimed", [OWN, "", bundle_hash(b"code")])
def test_another_bundle_is_refused_whatever_hash_it_claims(asked: list[Request], claimed: str) -> None:
    reply = _reply(b"code", [OWN], claimed)
    assert reply.error.code == NOT_APPROVED
    assert asked == []
    assert refusal_text(reply)[0] == "BundleNotApproved"


def test_a_further_bundle_that_the_site_approved_is_passed_on(asked: list[Request]) -> None:
    assert _reply(b"code", [OWN, bundle_hash(b"code")]).has_content()


def test_the_daemon_is_given_the_time_that_the_message_has_left(asked: list[Request]) -> None:
    _reply(bundle(), [OWN])
    assert 40.0 < asked[0].seconds < 50.0


def test_a_silent_daemon_is_named_so_to_the_coordinator() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    reply = Message(Error(NO_DAEMON, "anything"), reply_to=_message())
    assert refusal_text(reply) == ("DaemonSilent", "The hospital's daemon did not answer in time.")


def test_an_answer_that_cannot_be_read_is_an_error_without_words(
    asked: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PayloadRefused("Jane Doe")

    monkeypatch.setattr(task_runner, "ask", fail)
    assert _reply(bundle(), [OWN]).error.reason == ""


def test_it_goes_on_while_there_is_no_supernode(tmp_path: Path) -> None:
    """`run` ends by its event alone."""
    (tmp_path / "superexec.secret").write_bytes(b"s" * 32)
    tries: list[float] = []

    class Until:
        def wait(self, seconds: float) -> bool:
            tries.append(seconds)
            return len(tries) > 3

    started = time.monotonic()
    TaskRunner(tmp_path, "127.0.0.1:1", [OWN]).run(Until())  # type: ignore[arg-type]
    assert tries == sorted(tries)
    assert tries[-1] > tries[0]
    assert time.monotonic() - started < 20.0


def test_a_new_task_gives_up_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends while the SuperNode fetches its message leaves a task whose message never comes."""
    begun: list[threading.Event] = []
    monkeypatch.setattr(TaskRunner, "_do", lambda self, token, given_up: begun.append(given_up))
    runner = TaskRunner(Path("/nowhere"), "127.0.0.1:1", [OWN])
    for token in ("first", "second"):
        runner._begin(token)
    assert [event.is_set() for event in begun] == [True, False]


def test_a_message_that_never_comes_whole_is_waited_for_until_it_is_given_up() -> None:
    class Client:
        def PullMessages(self, request: object) -> PullAppMessagesResponse:
            return PullAppMessagesResponse(
                messages_list=[ProtoMessage()], message_object_trees=[ObjectTree(object_id="a" * 64)]
            )

        ConfirmMessageReceived = None

        def PullObject(self, request: object) -> PullObjectResponse:
            return PullObjectResponse(object_found=True, object_available=False)

    given_up, found = threading.Event(), []
    task = PullTaskInputResponse(fab=Fab(content=bundle()))
    waiting = threading.Thread(target=lambda: found.append(_pull(Client(), task, given_up)))  # type: ignore[arg-type]
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    given_up.set()
    waiting.join(10)
    assert found == [None]


def test_a_reply_that_was_handed_over_in_part_ends_the_runner_so_that_both_are_restarted(
    asked: list[Request], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError

    (tmp_path / "superexec.secret").write_bytes(b"s" * 32)
    monkeypatch.setattr(task_runner, "_push", fail)
    runner = TaskRunner(tmp_path, "127.0.0.1:1", [OWN])
    with pytest.raises(ConnectionError):
        runner._hand_over(None, _task(bundle()), _message())  # type: ignore[arg-type]
    assert runner.run(threading.Event()) is False


def test_a_task_that_was_given_up_ends_the_runner_and_is_not_told_as_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The SuperNode would make a reply of the failure, and from then on be one reply behind."""

    class Client:
        def PullTaskInput(self, request: object) -> PullTaskInputResponse:
            return _task(bundle())

    def never_whole(client: object, task: object, given_up: threading.Event) -> None:
        given_up.set()

    (tmp_path / "superexec.secret").write_bytes(b"s" * 32)
    monkeypatch.setattr(task_runner, "_pull", never_whole)
    runner = TaskRunner(tmp_path, "127.0.0.1:1", [OWN])
    runner._answer(Client(), threading.Event())  # type: ignore[arg-type]
    assert runner.run(threading.Event()) is False
