"""A study's folder holds one study, says by name what is wrong with it, and its watchers get whole lines."""

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common.config import LocalSettings, Study
from fedward.common.datasets import ImageDataset
from fedward.common.errors import CheckpointRefused, DatasetRefused, OutputRefused
from fedward.common.files import canonical_json
from fedward.server.study_folder import StudyFolder


@pytest.fixture(scope="module")
def study(make_study: Callable[..., Study], make_local: Callable[..., LocalSettings]) -> Study:
    return make_study(make_local(class_prior=(0.25, 0.75)), parent="b" * 64)


@pytest.fixture
def folder(tmp_path: Path, study: Study, phantom: ImageDataset) -> StudyFolder:
    made = StudyFolder(tmp_path / "deep" / "study")
    made.create(study, phantom.val)
    return made


def test_study_and_reference_records_come_back(
    folder: StudyFolder, study: Study, phantom: ImageDataset
) -> None:
    again = StudyFolder(folder.path)
    assert again.study() == study
    reference = again.reference()
    assert reference is not None
    np.testing.assert_array_equal(reference.images, phantom.val.images)
    np.testing.assert_array_equal(reference.labels, phantom.val.labels)


def test_a_study_without_reference_data_has_none(tmp_path: Path, study: Study) -> None:
    folder = StudyFolder(tmp_path)
    folder.create(study, None)
    assert folder.reference() is None


def test_a_folder_that_holds_a_study_is_not_written_over(folder: StudyFolder, study: Study) -> None:
    before = (folder.path / "study.json").read_bytes()
    with pytest.raises(OutputRefused, match="holds a study already"):
        folder.create(Study.from_dict({**study.to_dict(), "name": "other"}), None)
    assert (folder.path / "study.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path, study: Study) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputRefused):
        StudyFolder(tmp_path / "file" / "study").create(study, None)


def test_a_folder_without_a_study_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="holds no study"):
        StudyFolder(tmp_path).study()


def test_settings_cut_short_at_any_byte_are_refused(folder: StudyFolder) -> None:
    data = (folder.path / "study.json").read_bytes()
    for length in range(len(data)):
        (cut := folder.path / str(length)).mkdir()
        (cut / "study.json").write_bytes(data[:length])
        with pytest.raises(CheckpointRefused, match="damaged"):
            StudyFolder(cut).study()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_setting_of_any_other_kind_is_refused_or_is_that_study(
    study: Study, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever JSON stands where a setting was: a named refusal or a study that says the same again."""
    values = study.to_dict()
    path = data.draw(
        st.sampled_from([(key,) for key in values] + [("local", key) for key in values["local"]])
    )
    place = values if len(path) == 1 else values["local"]
    place[path[-1]] = data.draw(JSON)
    folder = StudyFolder(tmp_path_factory.mktemp("study"))
    (folder.path / "study.json").write_bytes(canonical_json(values))
    try:
        found = folder.study()
    except CheckpointRefused:
        return
    assert Study.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("text", [b"", b"\xff", b"[" * 100_000, b"null", b"{}", b"[]", b"7", b'{"local": 3}'])
def test_settings_that_are_none_are_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "study.json").write_bytes(text)
    with pytest.raises(CheckpointRefused):
        StudyFolder(tmp_path).study()


def test_damaged_reference_records_are_refused_by_name(folder: StudyFolder) -> None:
    file = folder.path / "reference.npz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DatasetRefused):
        folder.reference()


def _events(folder: StudyFolder) -> list[dict[str, object]]:
    """The events without their times."""
    lines = (folder.path / "progress.jsonl").read_bytes().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]


def test_a_note_is_one_line_and_the_next_comes_after_it(folder: StudyFolder) -> None:
    folder.note("round", round=1)
    folder.note("reply", hospital="St. Mary's\n\u2028")
    assert _events(folder) == [
        {"event": "round", "round": 1},
        {"event": "reply", "hospital": "St. Mary's\n\u2028"},
    ]


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_a_note_is_refused_and_leaves_no_half_line(folder: StudyFolder) -> None:
    folder.note("round", round=1)
    with pytest.raises(OutputRefused), _largest_file(70):
        folder.note("reply", hospital="hospital-0")
    folder.note("reply", hospital="hospital-1")
    assert _events(folder) == [{"event": "round", "round": 1}, {"event": "reply", "hospital": "hospital-1"}]


def test_a_disk_that_fails_is_refused_by_name(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OutputRefused, match="read-only"):
        folder.note("round", round=1)
