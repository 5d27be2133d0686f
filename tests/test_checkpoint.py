"""The coordinator's state is read whole or refused by name, and a failed write leaves the one before."""

import errno
import hashlib
import io
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.config import LocalSettings, Study
from fedward.common.errors import CheckpointRefused, OutputRefused
from fedward.server.checkpoint import Progress, load_checkpoint, save_checkpoint

NOBODY = 65534


@pytest.fixture(scope="module")
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local())


def _progress(server_round: int = 2, count: int = 5) -> Progress:
    rng = np.random.default_rng(server_round)
    latents, momentum = rng.normal(size=(2, count)).astype(np.float32)
    return Progress(server_round, latents, momentum, rng.normal(size=count), [{"round": 1, "auc": None}])


@pytest.fixture
def path(tmp_path: Path, study: Study) -> Path:
    """A folder with a good checkpoint of round 2."""
    save_checkpoint(tmp_path / "checkpoint.bin", _progress(), study)
    return tmp_path / "checkpoint.bin"


def _assert_intact(path: Path, study: Study, server_round: int = 2) -> None:
    assert _same(load_checkpoint(path, study), _progress(server_round))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def _same(found: Progress, expected: Progress) -> bool:
    for name in ("latents", "momentum", "average"):
        one, other = getattr(found, name), getattr(expected, name)
        if one.dtype != other.dtype or one.tobytes() != other.tobytes():
            return False
    return (found.server_round, found.history) == (expected.server_round, expected.history)


def test_what_is_saved_comes_back_to_the_last_bit(path: Path, study: Study) -> None:
    _assert_intact(path, study)


def test_what_hospitals_hold_comes_back_where_models_travel_as_differences(path: Path, study: Study) -> None:
    held = {"hospital-0": "ab" * 32}
    progress = replace(_progress(), replica=np.array([1.5, -0.0, 3.0], np.float32), held=held)
    save_checkpoint(path, progress, study)
    found = load_checkpoint(path, study)
    assert found.replica is not None
    assert progress.replica is not None
    assert found.replica.tobytes() == progress.replica.tobytes()
    assert found.held == held


def test_the_next_round_replaces_the_one_before(path: Path, study: Study) -> None:
    save_checkpoint(path, _progress(3), study)
    _assert_intact(path, study, 3)


def test_a_checkpoint_cut_short_at_any_byte_is_refused(path: Path, study: Study) -> None:
    data = path.read_bytes()
    for length in range(len(data)):
        path = path.with_name(f"cut at {length}")
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointRefused, match="cut short or damaged"):
            load_checkpoint(path, study)


def test_a_checkpoint_with_any_byte_changed_is_refused(path: Path, study: Study) -> None:
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 + position % 255
        path = path.with_name(f"changed at {position}")
        path.write_bytes(changed)
        with pytest.raises(CheckpointRefused):
            load_checkpoint(path, study)


@given(st.binary(max_size=200))
def test_no_other_file_is_taken_for_a_checkpoint(study: Study, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.bin"
        path.write_bytes(data)
        with pytest.raises(CheckpointRefused):
            load_checkpoint(path, study)


def test_bytes_after_its_end_are_refused(path: Path, study: Study) -> None:
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(CheckpointRefused):
        load_checkpoint(path, study)


@pytest.mark.parametrize("change", [{"name": "other"}, {"learning_rate": 0.25}, {"seed": 1}, {"quorum": 1}])
def test_the_checkpoint_of_a_study_that_differs_in_one_setting_is_refused(
    path: Path, study: Study, change: dict[str, object]
) -> None:
    other = Study.from_dict({**study.to_dict(), **change})
    with pytest.raises(CheckpointRefused, match="another study"):
        load_checkpoint(path, other)


def test_a_missing_checkpoint_is_refused_by_name(tmp_path: Path, study: Study) -> None:
    with pytest.raises(CheckpointRefused, match="no checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.bin", study)


def test_a_folder_in_its_place_is_refused_by_name(tmp_path: Path, study: Study) -> None:
    with pytest.raises(CheckpointRefused, match=r"cannot be read|regular file"):
        load_checkpoint(tmp_path, study)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"header": np.frombuffer(b"[]", np.uint8)},
        {"header": np.frombuffer(b"{}", np.uint8), "latents": np.zeros(2)},
        {"header": np.array(["x"], object)},
    ],
)
def test_a_whole_file_of_another_version_is_refused_by_name(
    tmp_path: Path, study: Study, arrays: dict[str, np.ndarray]
) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **{"other": np.zeros(1), **arrays})
    path = tmp_path / "checkpoint.bin"
    path.write_bytes(b"FWDCKPT1" + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(CheckpointRefused, match="not a checkpoint of this version"):
        load_checkpoint(path, study)


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Files may hold `size` bytes: to a writer the same as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_a_full_disk_is_refused_by_name_and_the_checkpoint_before_stays(
    path: Path, study: Study, size: int
) -> None:
    with pytest.raises(OutputRefused, match="cannot be written"), _largest_file(size):
        save_checkpoint(path, _progress(3), study)
    _assert_intact(path, study)


@pytest.mark.parametrize("call", ["fsync", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_is_refused_by_name_and_the_checkpoint_before_stays(
    path: Path, study: Study, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OutputRefused):
            save_checkpoint(path, _progress(3), study)
    _assert_intact(path, study)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may write anywhere, so a read-only folder is one only to somebody else."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_read_only_folder_is_refused_by_name_and_the_checkpoint_before_stays(study: Study) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.bin"
        save_checkpoint(path, _progress(), study)
        Path(folder).chmod(0o555)
        with _as_nobody():
            with pytest.raises(OutputRefused, match="may not be written"):
                save_checkpoint(path, _progress(3), study)
            _assert_intact(path, study)
        Path(folder).chmod(0o755)


def test_an_interrupted_write_leaves_the_checkpoint_before(
    path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, _progress(3), study)
    _assert_intact(path, study)
