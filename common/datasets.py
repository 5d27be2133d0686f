"""Images in MedMNIST's layout (https://medmnist.com): reading, checking, and what a data set is.

numpy only. Two kinds of file: a data set (``train_images``, ``train_labels``, and so on for val and test,
optionally ``class_names``), and one hospital's own ``data.npz`` (``images`` and ``labels``, nothing else).
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedward.common.errors import DatasetRefused
from fedward.common.files import write_atomically
from fedward.common.medmnist_sets import MEDMNIST_SETS
from fedward.common.npz_files import archive_bytes, read_archive

TASKS = ("binary", "multi-class", "multi-label")
SPLITS = ("train", "val", "test")
MIN_SIDE, MAX_SIDE = 8, 2048  # pixels
MAX_CLASSES = 1000
_LAYOUT = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Attributes:
        images: uint8, (n, height, width, channels), channels 1 or 3.
        labels: int64, (n,) class indices, or (n, classes) of 0/1 for the multi-label task.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageDataset:
    """A checked data set.

    Attributes:
        name: short name, for example ``pneumoniamnist``.
        source: where it came from, as one phrase for a person.
        sha256: of the file's bytes, or of the arrays for a generated set.
        task: one of `TASKS`.
        classes: names, in label order. The binary task has two.
    """

    name: str
    source: str
    sha256: str
    task: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split


def read_npz(path: Path | str, name: str | None = None, source: str | None = None) -> ImageDataset:
    """Read and check a data set in MedMNIST's layout.

    Args:
        path: npz with images (n, h, w) or (n, h, w, 1 or 3) of uint8 and integer labels (n,), (n, 1) or, for
            the multi-label task, (n, classes) of 0/1.
        name: short name; by default the file's, without a size as in ``mednist_28``.
        source: phrase for a person; by default the path.

    The classes are the file's own ``class_names``, else MedMNIST's for a set of that name, else "0", "1", ...

    Raises:
        DatasetRefused: the file cannot be read whole, lacks a split, or its arrays do not fit the layout.
    """
    path = Path(path)
    archive = read_archive(path, (*_LAYOUT, "class_names"))
    name = name or re.sub(r"_\d+$", "", path.stem)
    missing = [key for key in _LAYOUT if key not in archive.arrays]
    if missing:
        raise DatasetRefused(f"{path} has no {', '.join(missing)}: all of train, val and test are needed.")
    train, val, test = (_split_of(archive.arrays, f"{split}_", path) for split in SPLITS)
    _check_same_shapes(path, train, val, test)
    classes = _class_names(path, name, archive.arrays, (train, val, test))
    task = _task_of(path, train, classes)
    _check_task_of_name(path, name, task)
    return ImageDataset(name, source or str(path), archive.sha256, task, classes, train, val, test)


def read_split(path: Path | str) -> Split:
    """Read one hospital's own file: ``images`` and ``labels``, shaped as in `read_npz`, and nothing else.

    Raises:
        DatasetRefused: as `read_npz`; also when anything else, perhaps a patient's name, is in it.
    """
    path = Path(path)
    archive = read_archive(path, ("images", "labels"))
    if sorted(archive.names) != ["images", "labels"]:
        raise DatasetRefused(f"{path} must hold the arrays images and labels, and nothing else.")
    return _split_of(archive.arrays, "", path)


def save_npz(path: Path | str, data: Split | ImageDataset) -> None:
    """Write a hospital's own file (of a `Split`) or a data set in MedMNIST's layout, atomically.

    Equal arrays give equal bytes, and `read_split` or `read_npz` gives the same arrays back. Only its
    owner may read a hospital's file.

    Raises:
        OutputRefused: the file cannot be written.
    """
    if isinstance(data, Split):
        write_atomically(Path(path), archive_bytes(_stored(data, "")), mode=0o600)
        return
    arrays: dict[str, npt.NDArray[Any]] = {}
    for prefix, split in zip(SPLITS, (data.train, data.val, data.test), strict=True):
        arrays |= _stored(split, f"{prefix}_")
    write_atomically(Path(path), archive_bytes(arrays | {"class_names": np.array(data.classes)}))


def fingerprint(*splits: Split) -> str:
    """SHA-256 (hex) over the shapes, types and bytes of the splits' images and labels, in order."""
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.images, split.labels.astype("<i8")):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _stored(split: Split, prefix: str) -> dict[str, npt.NDArray[Any]]:
    images = split.images[..., 0] if split.images.shape[-1] == 1 else split.images
    labels = split.labels.reshape(len(split.labels), -1).astype("<i8")
    return {f"{prefix}images": images, f"{prefix}labels": labels}


def _split_of(arrays: Mapping[str, npt.NDArray[Any]], prefix: str, path: Path) -> Split:
    images, labels = f"{prefix}images", f"{prefix}labels"
    split = Split(
        _checked_images(arrays[images], f"{path}: {images}"),
        _checked_labels(arrays[labels], f"{path}: {labels}"),
    )
    if len(split.images) != len(split.labels):
        raise DatasetRefused(
            f"{path}: {images} holds {len(split.images)} images, but {labels} {len(split.labels)} labels."
        )
    return split


def _checked_images(images: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8]:
    """(n, h, w) or (n, h, w, c) of uint8 -> (n, h, w, c)."""
    if images.dtype != np.uint8:
        raise DatasetRefused(f"{where} must be uint8 (0 to 255), not {images.dtype}.")
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DatasetRefused(f"{where} must be (n, h, w) or (n, h, w, 3), not {_shape(images)}.")
    if len(images) == 0:
        raise DatasetRefused(f"{where} is empty; every split needs at least one image.")
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in images.shape[1:3]):
        raise DatasetRefused(
            f"{where} must have sides of {MIN_SIDE} to {MAX_SIDE} pixels, not {_shape(images)}."
        )
    return np.ascontiguousarray(images)


def _checked_labels(labels: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
    """(n,), (n, 1) -> (n,) class indices; (n, k) -> (n, k) of 0/1."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or labels.size == 0:
        raise DatasetRefused(f"{where} must be (n,), (n, 1) or (n, classes), not {_shape(labels)}.")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise DatasetRefused(f"{where} holds NaN; labels must be whole numbers.")
    if labels.dtype.kind not in "iu":
        raise DatasetRefused(f"{where} must be whole numbers, not {labels.dtype}.")
    if labels.ndim == 2 and labels.shape[1] > MAX_CLASSES:
        raise DatasetRefused(f"{where} have {labels.shape[1]} columns, more than {MAX_CLASSES} classes.")
    # A column of a multi-label set is one class, so only 0 and 1 may stand in it.
    largest = MAX_CLASSES - 1 if labels.ndim == 1 else 1
    if labels.min() < 0 or labels.max() > largest:
        raise DatasetRefused(
            f"{where} are out of range: {labels.min()} to {labels.max()}, where 0 to {largest} may stand."
        )
    return np.ascontiguousarray(labels, dtype=np.int64)


def _check_same_shapes(path: Path, train: Split, val: Split, test: Split) -> None:
    for name, split in (("val", val), ("test", test)):
        if split.images.shape[1:] != train.images.shape[1:]:
            raise DatasetRefused(
                f"{path}: {name}_images are of another size than train_images:"
                f" {_shape(split.images)} and {_shape(train.images)}."
            )
        if split.labels.shape[1:] != train.labels.shape[1:]:
            raise DatasetRefused(f"{path}: {name}_labels have another number of columns than train_labels.")


def _class_names(
    path: Path, name: str, arrays: Mapping[str, npt.NDArray[Any]], splits: tuple[Split, ...]
) -> tuple[str, ...]:
    labels = [split.labels for split in splits]
    count = labels[0].shape[1] if labels[0].ndim == 2 else 1 + max(int(array.max()) for array in labels)
    if "class_names" in arrays:
        classes = _own_names(arrays["class_names"], path)
    elif name in MEDMNIST_SETS:
        classes = MEDMNIST_SETS[name].classes
    else:
        classes = tuple(str(label) for label in range(count))
        _check_no_gaps(path, labels, count)
    if count > len(classes) or (labels[0].ndim == 2 and count != len(classes)):
        raise DatasetRefused(
            f"{path}: labels are out of range: they need {count} classes, {name} has {len(classes)}."
        )
    return classes


def _own_names(names: npt.NDArray[Any], path: Path) -> tuple[str, ...]:
    texts = tuple(names.tolist()) if names.ndim == 1 and names.dtype.kind == "U" else ()
    sound = all(text.isprintable() and 0 < len(text) <= 200 for text in texts)
    if not 0 < len(texts) <= MAX_CLASSES or len(set(texts)) != len(texts) or not sound:
        raise DatasetRefused(f"{path}: class_names must be a list of different, printable names.")
    return texts


def _check_no_gaps(path: Path, labels: list[npt.NDArray[np.int64]], count: int) -> None:
    """Without names, a label that never occurs is more likely a mistake than a class."""
    if labels[0].ndim == 1:
        absent = sorted(set(range(count)) - set(np.unique(np.concatenate(labels)).tolist()))
        if absent:
            raise DatasetRefused(
                f"{path}: labels are out of range: they go up to {count - 1}, but {absent[0]} never occurs;"
                " number the classes from 0, or add class_names."
            )


def _task_of(path: Path, train: Split, classes: tuple[str, ...]) -> str:
    if len(np.unique(train.labels, axis=0)) < 2:
        raise DatasetRefused(f"{path}: all train_labels are the same; at least two classes are needed.")
    if train.labels.ndim == 2:
        return "multi-label"
    return "binary" if len(classes) == 2 else "multi-class"


def _check_task_of_name(path: Path, name: str, task: str) -> None:
    known = MEDMNIST_SETS.get(name)
    if known and known.task != task:
        raise DatasetRefused(f"{path} is not {name}: its labels are {task}, {name}'s are {known.task}.")


def _shape(array: npt.NDArray[Any]) -> str:
    return f"({', '.join(map(str, array.shape))})"
