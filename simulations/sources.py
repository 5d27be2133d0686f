"""Where a simulation's data set comes from: a name, a file, or the embedded phantoms.

Folders are searched in this order: those of $FEDWARD_DATA, ~/.medmnist, then shared/data beside the current
folder and beside the project's own. In each, ``NAME.npz`` or ``medmnist/NAME.npz`` is looked for.
"""

import dataclasses
import difflib
import os
from pathlib import Path

from fedward.common.datasets import SPLITS, ImageDataset, read_npz
from fedward.common.errors import DatasetRefused, SettingRefused, UnknownName
from fedward.common.medmnist_sets import MEDMNIST_SETS
from fedward.simulations.download import check_md5, download_medmnist
from fedward.simulations.phantoms import DEFAULT_COUNTS, NAMES, make_phantoms

DATA_VARIABLE = "FEDWARD_DATA"
DEFAULT_SET = "pneumoniamnist"
# Public data without an official digest: name and file at 28 pixels.
OTHER_SETS = ("mednist",)
AUTO_SECONDS, NAMED_SECONDS = 120.0, 1200.0  # the default set has 4 MB, the largest of 28 pixels 200 MB
_KINDS = {name: kind for kind, name in NAMES.items()}
_PHANTOM_SETTINGS = ("classes", "imbalance", "seed", "size", *SPLITS)
_PROJECT = Path(__file__).resolve().parent.parent


def find_dataset(spec: str, size: int | None = None) -> ImageDataset:
    """The data set that `spec` names; its ``source`` says where it was found, or why it is a substitute.

    Args:
        spec: ``auto`` (PneumoniaMNIST found or fetched, else phantoms), a MedMNIST name or ``mednist``,
            ``phantom``, ``phantom-colour`` or ``phantom-findings`` with settings such as
            ``phantom:imbalance=10,seed=1`` (classes, imbalance, seed, size, train, val, test), or the path
            of an npz in MedMNIST's layout.
        size: side in pixels; 28 by default, and for a file what it holds.

    Raises:
        UnknownName: no such data set or setting; the sentence lists those that exist.
        SettingRefused: a setting is out of range, or the file has another size than asked for.
        DatasetRefused: the file is nowhere to be had, is not the official one, or does not fit the layout.
    """
    name, _, settings = spec.partition(":")
    if name in _KINDS:
        return _phantoms(name, settings, size)
    if spec.endswith(".npz") or Path(spec).name != spec:
        return _of_size(read_npz(os.path.expanduser(spec)), size)
    if spec == "auto":
        return _auto(size or 28)
    if spec in MEDMNIST_SETS or spec in OTHER_SETS:
        return _named(spec, size or 28)
    raise _unknown(spec)


def search_folders() -> list[Path]:
    """The folders that are searched for data, in order, whether they exist or not."""
    own = [Path(text) for text in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if text]
    shared = [Path("..") / "shared" / "data", _PROJECT.parent / "shared" / "data"]
    return [*own, _medmnist_folder(), *shared]


def _medmnist_folder() -> Path:
    return Path(os.path.expanduser("~/.medmnist"))


def _auto(size: int) -> ImageDataset:
    if found := _on_disk(DEFAULT_SET, size):
        return _checked(found, DEFAULT_SET, size)
    try:
        path = download_medmnist(DEFAULT_SET, size, _medmnist_folder(), AUTO_SECONDS)
    except DatasetRefused as reason:
        phantoms = make_phantoms(size=size)
        why = f"{DEFAULT_SET} is not on this machine, and {str(reason).rstrip('.')}"
        return dataclasses.replace(phantoms, source=f"{phantoms.source}, because {why}")
    return _checked(path, DEFAULT_SET, size, "just downloaded to ")


def _named(name: str, size: int) -> ImageDataset:
    if found := _on_disk(name, size):
        return _checked(found, name, size)
    looked = f"{name} of {size} pixels is in none of {', '.join(map(str, search_folders()))}"
    if name not in MEDMNIST_SETS:
        raise DatasetRefused(f"{looked}; name its path, or the folder that has it in ${DATA_VARIABLE}.")
    try:
        path = download_medmnist(name, size, _medmnist_folder(), NAMED_SECONDS)
    except DatasetRefused as reason:
        raise DatasetRefused(f"{looked}, and {reason}") from reason
    return _checked(path, name, size, "just downloaded to ")


def _on_disk(name: str, size: int) -> Path | None:
    files = [f"{name}.npz"] if size == 28 else []
    if size != 28 or name in OTHER_SETS:
        files.append(f"{name}_{size}.npz")
    places = (
        folder / sub / file for folder in search_folders() for sub in ("", "medmnist") for file in files
    )
    # os.path's isfile answers no where Path's would raise: in a folder that may not be read.
    return next((place for place in places if os.path.isfile(place)), None)


def _checked(path: Path, name: str, size: int, how: str = "") -> ImageDataset:
    if name in MEDMNIST_SETS and size == 28:
        check_md5(path, MEDMNIST_SETS[name].md5, str(path))
        how = f"the official file, {how}"
    return _of_size(read_npz(path, name, f"{how}{path}"), size)


def _of_size(dataset: ImageDataset, size: int | None) -> ImageDataset:
    height, width = dataset.train.images.shape[1:3]
    if size is not None and (height, width) != (size, size):
        raise SettingRefused(f"{dataset.source} has images of {height} x {width} pixels, not of size {size}.")
    return dataset


def _phantoms(name: str, text: str, size: int | None) -> ImageDataset:
    parts = [part.partition("=") for part in text.split(",") if part]
    settings = {key: _number(key, value) for key, _, value in parts}
    if size is not None and settings.setdefault("size", size) != size:
        raise SettingRefused(f"{name}:{text} contradicts the size {size}; give one of them.")
    train, val, test = (
        int(settings.pop(split, count)) for split, count in zip(SPLITS, DEFAULT_COUNTS, strict=True)
    )
    imbalance = settings.pop("imbalance", 1.0)
    whole = {key: int(value) for key, value in settings.items()}  # classes, seed, size
    return make_phantoms(_KINDS[name], imbalance=imbalance, counts=(train, val, test), **whole)


def _number(key: str, value: str) -> float:
    if key not in _PHANTOM_SETTINGS:
        raise UnknownName(f"Phantoms have no setting {key!r}; there are {', '.join(_PHANTOM_SETTINGS)}.")
    try:
        return float(value) if key == "imbalance" else int(value)
    except ValueError:
        raise SettingRefused(f"The phantoms' {key} must be a number, not {value!r}.") from None


def _unknown(spec: str) -> UnknownName:
    known = ["auto", *_KINDS, *sorted(MEDMNIST_SETS), *OTHER_SETS]
    near = difflib.get_close_matches(spec.lower(), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return UnknownName(f"No data set {spec!r}; there are {', '.join(known)}, or the path of an npz.{hint}")
