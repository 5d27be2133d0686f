"""A round has one reply, byte for byte, however often and whatever crashed."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from fedward.client.replies import MOST_REPLY_BYTES, ReplyStore
from fedward.common.errors import OutputRefused, RequestRefused

CONTENT, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> ReplyStore:
    return ReplyStore(tmp_path / "replies")


def test_a_reply_comes_back_byte_for_byte_after_a_restart(store: ReplyStore) -> None:
    reply = bytes(range(256)) * 50 + b"\n\n"
    assert store.get("study", 1, CONTENT) is None
    assert store.store("study", 1, CONTENT, reply) == reply
    assert ReplyStore(store.folder).get("study", 1, CONTENT) == reply


def test_the_first_reply_is_the_one_that_leaves(store: ReplyStore) -> None:
    store.store("study", 1, CONTENT, b"first")
    assert store.store("study", 1, CONTENT, b"second") == b"first"


def test_of_racing_replies_all_send_the_same(store: ReplyStore) -> None:
    sent: list[bytes] = []

    def answer(number: int) -> None:
        sent.append(ReplyStore(store.folder).store("study", 1, CONTENT, b"reply %d" % number))

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 8
    assert len(set(sent)) == 1


def test_rounds_studies_and_kinds_are_kept_apart(store: ReplyStore) -> None:
    keys = [("a", 1, "train"), ("a", 2, "train"), ("b", 1, "train"), ("a", 1, "metric"), ("a1", 1, "train")]
    for number, (study, server_round, kind) in enumerate(keys):
        store.store(study, server_round, CONTENT, b"%d" % number, kind)
    for number, (study, server_round, kind) in enumerate(keys):
        assert store.get(study, server_round, CONTENT, kind) == b"%d" % number


def test_a_round_of_other_content_is_refused(store: ReplyStore) -> None:
    store.store("study", 1, CONTENT, b"reply")
    with pytest.raises(RequestRefused, match="other content"):
        store.get("study", 1, OTHER)
    with pytest.raises(RequestRefused, match="other content"):
        store.store("study", 1, OTHER, b"reply")


def test_a_damaged_reply_does_not_leave_and_no_second_one_does(store: ReplyStore) -> None:
    store.store("study", 1, CONTENT, b"reply")
    (path,) = store.folder.glob("*.reply")
    good = path.read_bytes()
    for bad in (
        good[:-1],
        good + b"x",
        good[:-1] + b"Y",
        b"",
        b"[]\nreply",
        good[10:],
        good.replace(b"train", b"xrain"),
    ):
        path.write_bytes(bad)
        with pytest.raises(RequestRefused, match="damaged"):
            store.get("study", 1, CONTENT)
        with pytest.raises(RequestRefused, match="damaged"):
            store.store("study", 1, CONTENT, b"reply")


def test_a_reply_is_synced_before_it_may_leave(store: ReplyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    store.store("study", 1, CONTENT, b"reply")
    assert synced[-1] == str(store.folder)
    assert len(synced) == 2


def test_a_reply_that_cannot_be_kept_does_not_leave(
    store: ReplyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputRefused, match="full"):
        store.store("study", 1, CONTENT, b"reply")
    monkeypatch.undo()
    assert store.get("study", 1, CONTENT) is None


def test_replies_out_of_bounds_are_refused(store: ReplyStore) -> None:
    for reply in (b"", bytes(MOST_REPLY_BYTES + 1)):
        with pytest.raises(RequestRefused):
            store.store("study", 1, CONTENT, reply)
    with pytest.raises(RequestRefused):
        store.store("study", 1, "short", b"reply")


def test_the_files_layout_is_fixed(store: ReplyStore) -> None:
    """Golden bytes: a change here is a change of the format."""
    store.store("study", 7, CONTENT, b"reply")
    (path,) = store.folder.glob("*.reply")
    assert path.name == hashlib.sha256(b'["study",7,"train"]').hexdigest() + ".reply"
    assert path.read_bytes() == (
        b'{"content":"' + CONTENT.encode() + b'","kind":"train","length":5,"round":7,"sha256":"'
        + hashlib.sha256(b"reply").hexdigest().encode() + b'","study":"study"}\nreply'
    )  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600
