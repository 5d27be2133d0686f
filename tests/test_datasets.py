"""Data sets are read whole and checked, or refused by name in one sentence."""

import dataclasses
import hashlib
import io
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedward.common import datasets, npz_files
from fedward.common.datasets import ImageDataset, Split, fingerprint, read_npz, read_split, save_npz
from fedward.common.errors import DatasetRefused, OutputRefused
from fedward.common.medmnist_sets import MEDMNIST_SETS
from fedward.common.npz_files import archive_bytes, read_archive

COUNTS = {"train": 12, "val": 6, "test": 6}
in_one_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def layout(channels: int = 1, classes: int = 2, columns: int = 1, side: int = 8) -> dict[str, Any]:
    """A sound data set's arrays; `columns` above 1 makes it multi-label."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in COUNTS.items():
        shape = (count, side, side) if channels == 1 else (count, side, side, channels)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        labels = np.arange(count * columns) % classes
        arrays[f"{split}_labels"] = labels.reshape(count, columns).astype(np.uint8)
    return arrays


def stored(path: Path, **changes: Any) -> Path:
    arrays = layout() | changes
    path.write_bytes(archive_bytes({key: value for key, value in arrays.items() if value is not None}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DatasetRefused) as caught:
        read_npz(path)
    sentence = str(caught.value).replace(str(path), "FILE")  # whose name has words of the test's
    assert sentence.endswith(".")
    return sentence


def test_a_grey_set_is_read_with_a_channel_axis_and_flat_labels(tmp_path: Path) -> None:
    arrays = layout()
    data = read_npz(stored(tmp_path / "scans_28.npz"))
    assert (data.name, data.task, data.classes) == ("scans", "binary", ("0", "1"))
    assert data.source == str(tmp_path / "scans_28.npz")
    np.testing.assert_array_equal(data.val.images[..., 0], arrays["val_images"])
    np.testing.assert_array_equal(data.val.labels, arrays["val_labels"][:, 0])
    assert data.train.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("shape", "task", "classes"),
    [
        ({"channels": 3}, "binary", 2),
        ({"classes": 5}, "multi-class", 5),
        ({"channels": 3, "columns": 4}, "multi-label", 4),
    ],
)
def test_the_task_follows_from_the_labels(
    tmp_path: Path, shape: dict[str, int], task: str, classes: int
) -> None:
    arrays = layout(**shape)
    arrays["train_labels"][0] = 1  # else all rows of the multi-label set are alike
    data = read_npz(stored(tmp_path / "a.npz", **arrays))
    assert (data.task, len(data.classes)) == (task, classes)
    assert data.train.images.shape == (12, 8, 8, shape.get("channels", 1))


def test_a_class_that_only_the_test_split_has_is_a_class(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    data = read_npz(stored(tmp_path / "a.npz", test_labels=labels))
    assert data.classes == ("0", "1", "2")


def test_names_come_from_the_file_else_from_medmnist(tmp_path: Path) -> None:
    assert read_npz(stored(tmp_path / "pneumoniamnist_64.npz")).classes == ("normal", "pneumonia")
    own = stored(tmp_path / "pneumoniamnist.npz", class_names=np.array(["well", "ill"]))
    assert read_npz(own).classes == ("well", "ill")


def test_a_named_class_may_have_no_image(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.npz", class_names=np.array(["a", "b", "c"]))
    assert read_npz(path).task == "multi-class"


def test_the_table_has_the_twelve_flat_sets_and_sound_entries() -> None:
    assert len(MEDMNIST_SETS) == 12
    for known in MEDMNIST_SETS.values():
        assert known.task in datasets.TASKS
        assert (known.task == "binary") == (len(known.classes) == 2)
        assert len(set(known.classes)) == len(known.classes)
        assert len(bytes.fromhex(known.md5)) == 16
    assert len({known.md5 for known in MEDMNIST_SETS.values()}) == 12
    assert MEDMNIST_SETS["chestmnist"].task == "multi-label"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_images": None, "val_labels": None}, "no val_images, val_labels"),
        ({"test_labels": None}, "no test_labels"),
        ({"train_images": np.zeros((0, 8, 8), np.uint8)}, "train_images is empty"),
        ({"val_images": np.zeros((0, 8, 8), np.uint8)}, "val_images is empty"),
        ({"test_images": np.zeros((0, 8, 8), np.uint8)}, "test_images is empty"),
        ({"val_images": np.zeros((6, 9, 8), np.uint8)}, "val_images are of another size"),
        ({"test_images": np.zeros((6, 8, 8, 3), np.uint8)}, "test_images are of another size"),
        ({"train_images": np.zeros((12, 8, 8), np.float32)}, "uint8"),
        ({"train_images": np.full((12, 8, 8), np.nan)}, "uint8"),
        ({"train_images": np.zeros((12, 64), np.uint8)}, "(n, h, w)"),
        ({"train_images": np.zeros((12, 8, 8, 2), np.uint8)}, "(n, h, w)"),
        ({"train_images": np.zeros((12, 8, 4), np.uint8)}, "sides"),
        ({"train_images": np.zeros((12, 8, 3000), np.uint8)}, "sides"),
        ({"train_labels": np.arange(12) % 2 - 1}, "out of range: -1"),
        ({"train_labels": np.arange(12) % 2 * 255}, "out of range"),
        ({"train_labels": np.full(12, 2**63, np.uint64)}, "out of range"),
        ({"train_labels": np.full(12, 5000)}, "out of range"),
        ({"train_labels": np.arange(12) % 2 * 1.0}, "whole numbers"),
        ({"train_labels": np.full(12, np.nan)}, "NaN"),
        ({"train_labels": np.array(["a"] * 12)}, "whole numbers"),
        ({"train_labels": np.zeros((12, 2, 2), int)}, "(n,)"),
        ({"train_labels": np.zeros((12, 0), int)}, "(n,)"),
        ({"train_labels": np.int64(1)}, "(n,)"),
        ({"train_labels": np.arange(24).reshape(12, 2) % 3}, "out of range"),
        ({"train_labels": np.zeros((12, 1001), int)}, "more than"),
        ({"train_labels": np.arange(24).reshape(12, 2) % 2}, "number of columns"),
        ({"train_labels": np.arange(11) % 2}, "12 images"),
        ({"train_labels": np.zeros(12, int)}, "at least two classes"),
        ({"class_names": np.array(["only one"])}, "out of range"),
        ({"class_names": np.array(["a", "a"])}, "class_names"),
        ({"class_names": np.array(["a", ""])}, "class_names"),
        ({"class_names": np.array(["a", "b\x1b[2J"])}, "class_names"),
        ({"class_names": np.array([b"a", b"b"])}, "class_names"),
    ],
)
def test_each_fault_is_refused_in_words(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    assert says in refusal(stored(tmp_path / "a.npz", **changes))


def test_labels_beyond_the_known_classes_are_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "pneumoniamnist.npz", val_labels=np.array([0, 1, 2, 0, 1, 2]))
    assert "out of range" in refusal(path)


def test_a_set_of_another_task_than_its_name_is_refused(tmp_path: Path) -> None:
    arrays = layout(columns=14) | {"train_labels": np.eye(12, 14, dtype=int)}
    assert read_npz(stored(tmp_path / "chestmnist.npz", **arrays)).task == "multi-label"
    single = layout(classes=14) | {"class_names": np.array([str(label) for label in range(14)])}
    assert "is not chestmnist" in refusal(stored(tmp_path / "chestmnist.npz", **single))


def test_files_that_are_no_whole_npz_are_refused_in_words(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.npz")
    whole = path.read_bytes()
    assert "does not exist" in refusal(tmp_path / "absent.npz")
    assert "folder" in refusal(tmp_path)
    path.write_bytes(b"")
    assert "empty" in refusal(path)
    path.write_bytes(b"train_images,1,2,3\n")
    assert "not an npz" in refusal(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refusal(path)
    assert "cannot be read" in refusal(Path("a\0b/c")) or "does not exist" in refusal(Path("a\0b/c"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    assert "not a regular file" in refusal(tmp_path / "pipe.npz")


def npy(array: np.ndarray, header_shape: tuple[int, ...] | None = None) -> bytes:
    """A member whose header may promise another shape than its data has."""
    member = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": header_shape or array.shape}
    np.lib.format.write_array_header_1_0(member, header)
    return member.getvalue() + array.tobytes()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("shape", [(10**15,), (5,), (-4,), (2**62, 4)])
def test_a_header_that_promises_another_size_is_refused_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = zipped(tmp_path / "a.npz", {"train_images.npy": npy(np.zeros(4, np.uint8), shape)})
    assert "not as long as its header says" in refusal(path)


def test_a_bomb_is_refused_by_what_it_unpacks_to(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", {"a.npy": npy(np.zeros(2**20, np.uint8))})
    assert path.stat().st_size < 2**14
    with pytest.raises(DatasetRefused, match="unpacks to"):
        read_archive(path, ["a"], max_bytes=2**19)
    with pytest.raises(DatasetRefused, match="larger than"):
        read_archive(path, ["a"], max_bytes=100)


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.array([print], dtype=object))
    assert "Python objects" in refusal(tmp_path / "a.npz")


def test_two_arrays_of_one_name_or_too_many_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", b"")
    assert "one name" in refusal(path)
    zipped(path, {f"{number}.npy": b"" for number in range(npz_files.MAX_MEMBERS + 1)})
    assert "too many" in refusal(path)


def same(left: Split, right: Split) -> bool:
    return fingerprint(left) == fingerprint(right)


@given(data=st.data(), deflated=st.booleans())
@in_one_folder
def test_a_damaged_file_is_refused_or_reads_as_it_was(
    tmp_path: Path, data: st.DataObject, deflated: bool
) -> None:
    sound = stored(tmp_path / "sound.npz")
    if deflated:
        np.savez_compressed(sound, **layout())
    expected, content = read_npz(sound), bytearray(sound.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "damaged.npz").write_bytes(content)
    try:
        found = read_npz(tmp_path / "damaged.npz")
    except DatasetRefused:
        return
    assert same(found.train, expected.train)
    assert same(found.val, expected.val)
    assert same(found.test, expected.test)


@st.composite
def splits(draw: st.DrawFn) -> Split:
    count, channels = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3]))
    columns = draw(st.sampled_from([None, 2, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    images = rng.integers(0, 256, (count, 8, 9, channels), dtype=np.uint8)
    return Split(images, rng.integers(0, 2, count if columns is None else (count, columns)))


@given(split=splits())
@in_one_folder
def test_a_hospitals_file_gives_back_what_was_saved_and_always_the_same_bytes(
    tmp_path: Path, split: Split
) -> None:
    path = tmp_path / "data.npz"
    save_npz(path, split)
    first = path.read_bytes()
    assert same(read_split(path), split)
    save_npz(path, read_split(path))
    assert path.read_bytes() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("shape", [{}, {"channels": 3, "classes": 4}, {"columns": 3}])
def test_a_data_set_gives_back_what_was_saved(tmp_path: Path, shape: dict[str, int]) -> None:
    arrays = layout(**shape)
    arrays["train_labels"][0] = 1
    data = read_npz(stored(tmp_path / "a.npz", **arrays))
    save_npz(tmp_path / "b.npz", data)
    again = read_npz(tmp_path / "b.npz", name=data.name, source=data.source)
    assert (again.task, again.classes) == (data.task, data.classes)
    for split in datasets.SPLITS:
        assert same(getattr(again, split), getattr(data, split))


def test_a_hospitals_file_holds_images_and_labels_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    images, labels = np.zeros((2, 8, 8), np.uint8), np.array([1, 1])
    path.write_bytes(archive_bytes({"images": images, "labels": labels}))
    assert read_split(path).images.shape == (2, 8, 8, 1)
    for arrays in (
        {"images": images},
        {"images": images, "labels": labels, "patients": np.array(["A. Name"])},
        {"images": images, "labels": labels[:1]},
        {"images": images[:0], "labels": labels[:0]},
    ):
        path.write_bytes(archive_bytes(arrays))
        with pytest.raises(DatasetRefused):
            read_split(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(OutputRefused):
        save_npz(tmp_path / "absent" / "data.npz", Split(np.zeros((1, 8, 8, 1), np.uint8), np.array([0])))


def test_the_fingerprint_changes_with_every_part() -> None:
    split = Split(np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1), np.array([0, 1]))
    changed = [
        Split(split.images[::-1], split.labels),
        Split(split.images, split.labels[::-1]),
        Split(split.images.reshape(2, 4, 16, 1), split.labels),
        Split(split.images, split.labels[:, np.newaxis]),
    ]
    assert len({fingerprint(each) for each in [split, *changed]}) == 5
    assert fingerprint(split, split) != fingerprint(split)
    fortran = dataclasses.replace(split, images=np.asfortranarray(split.images))
    assert fingerprint(fortran) == fingerprint(split)


def test_the_digest_is_the_files(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.npz")
    data: ImageDataset = read_npz(path)
    assert data.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_hospital_imports_neither_torch_nor_flwr_nor_medmnist_for_it() -> None:
    code = "import sys, fedward.common.datasets; print({'torch', 'flwr', 'medmnist'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
