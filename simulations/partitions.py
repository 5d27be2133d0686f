"""Ways to spread one data set over simulated hospitals.

``iid``          every hospital draws alike.
``dirichlet:A``  label skew: each class is spread by shares from Dirichlet(A); Hsu et al., arXiv:1909.06335.
``size:P``       hospital k gets a share proportional to k**-P; ``size`` alone is P = 1.
``scanner``      as iid, and each hospital's images have its own contrast and intensity (`scanner_shift`).
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedward.common.datasets import Split
from fedward.common.errors import SettingRefused, UnknownName

Indices = npt.NDArray[np.int64]

# Scanners of one modality differ by about so much after windowing; a student without exposure to it loses
# some accuracy, yet a person still reads every image.
CONTRAST_RANGE = (0.65, 1.35)
INTENSITY_RANGE = (-40.0, 40.0)  # grey levels of 255
MIN_CONCENTRATION, MAX_CONCENTRATION = 1e-6, 1e9  # outside of it the sampler's arithmetic breaks down
MAX_EXPONENT = 10.0
# Different uses of one seed must not share a stream.
_SPREAD, _SCANNER = 1, 2


def partition(labels: Split | npt.NDArray[np.integer], spec: str, hospitals: int, seed: int) -> list[Indices]:
    """Spread images over hospitals, each image exactly once and at least one for each hospital.

    Args:
        labels: a split, or its labels: (n,) class indices or (n, classes) of 0/1, where each combination of
            findings counts as one class.
        spec: ``iid``, ``dirichlet:A``, ``size`` or ``size:P``, ``scanner``.
        hospitals: how many.
        seed: equal seeds give equal partitions.

    Returns:
        For each hospital the indices of its images, int64, rising.

    Raises:
        UnknownName: no such partition; the sentence lists those that exist.
        SettingRefused: more hospitals than images, or a parameter that is missing or out of range.
    """
    array = labels.labels if isinstance(labels, Split) else np.asarray(labels)
    spread, parameter = _parse(spec)
    _check_counts(len(array), hospitals, seed)
    rng = np.random.default_rng(np.random.SeedSequence([_SPREAD, seed]))
    return [np.sort(part) for part in spread(array, parameter, hospitals, rng)]


def make_hospitals(train: Split, spec: str, hospitals: int, seed: int) -> list[Split]:
    """The hospitals' own splits: `partition`, and for ``scanner`` the shift of each hospital's images.

    Raises:
        UnknownName, SettingRefused: as `partition`.
    """
    parts = partition(train, spec, hospitals, seed)
    splits = [Split(train.images[part], train.labels[part]) for part in parts]
    if spec != "scanner":
        return splits
    return [
        Split(scanner_shift(split.images, hospital, seed), split.labels)
        for hospital, split in enumerate(splits)
    ]


def scanner_shift(images: npt.NDArray[np.uint8], hospital: int, seed: int) -> npt.NDArray[np.uint8]:
    """The images as this hospital's scanner would give them: another contrast about mid-grey, and brightness.

    Args:
        images: uint8, any shape.
        hospital: its index; a hospital's shift does not depend on how many others there are.
        seed: equal seeds give equal scanners.
    """
    rng = np.random.default_rng(np.random.SeedSequence([_SCANNER, seed, hospital]))
    contrast, intensity = rng.uniform(*CONTRAST_RANGE), rng.uniform(*INTENSITY_RANGE)
    levels = (np.arange(256) - 127.5) * contrast + 127.5 + intensity
    table: npt.NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return table[images]


def _iid(
    labels: npt.NDArray[np.integer], _: float, hospitals: int, rng: np.random.Generator
) -> list[Indices]:
    return list(np.array_split(rng.permutation(len(labels)), hospitals))


def _by_size(
    labels: npt.NDArray[np.integer], exponent: float, hospitals: int, rng: np.random.Generator
) -> list[Indices]:
    shares = np.arange(1, hospitals + 1) ** -exponent
    # One image each is set aside first, so that rounding leaves nobody without.
    counts = 1 + _rounded(shares / shares.sum(), len(labels) - hospitals)
    return _cut(rng.permutation(len(labels)), counts)


def _dirichlet(
    labels: npt.NDArray[np.integer], concentration: float, hospitals: int, rng: np.random.Generator
) -> list[Indices]:
    parts: list[list[Indices]] = [[] for _ in range(hospitals)]
    for members in _members_by_class(labels):
        shares = rng.dirichlet(np.full(hospitals, concentration))
        for part, piece in zip(
            parts, _cut(rng.permutation(members), _rounded(shares, len(members))), strict=True
        ):
            part.append(piece)
    return _nobody_empty([np.concatenate(part) for part in parts])


def _members_by_class(labels: npt.NDArray[np.integer]) -> list[Indices]:
    _, codes = np.unique(labels, axis=0, return_inverse=True)
    codes = codes.reshape(-1)
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def _rounded(shares: npt.NDArray[np.float64], total: int) -> Indices:
    """Whole numbers that sum to `total`, by largest remainders."""
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    leftover = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[leftover] += 1
    return counts


def _cut(indices: Indices, counts: Indices) -> list[Indices]:
    return np.split(indices, np.cumsum(counts)[:-1])


def _nobody_empty(parts: list[Indices]) -> list[Indices]:
    """The largest hospital gives one image to each that has none."""
    for receiver, part in enumerate(parts):
        if len(part) == 0:
            giver = max(range(len(parts)), key=lambda hospital: len(parts[hospital]))
            parts[receiver], parts[giver] = parts[giver][-1:], parts[giver][:-1]
    return parts


Spread = Callable[[npt.NDArray[np.integer], float, int, np.random.Generator], list[Indices]]
PARTITIONS: dict[str, Spread] = {"iid": _iid, "dirichlet": _dirichlet, "size": _by_size, "scanner": _iid}
_RANGES = {"dirichlet": (MIN_CONCENTRATION, MAX_CONCENTRATION), "size": (0.0, MAX_EXPONENT)}


def _parse(spec: str) -> tuple[Spread, float]:
    name, colon, text = spec.partition(":")
    if name not in PARTITIONS:
        raise UnknownName(f"No partition {name!r}; there are iid, dirichlet:A, size:P and scanner.")
    if name not in _RANGES:
        if colon:
            raise SettingRefused(f"The partition {name} takes no parameter; write {name}.")
        return PARTITIONS[name], 0.0
    if spec == "size":
        return PARTITIONS[name], 1.0
    return PARTITIONS[name], _parameter(name, text)


def _parameter(name: str, text: str) -> float:
    low, high = _RANGES[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:  # NaN is refused too
        raise SettingRefused(f"{name}:{text} is no partition; write {name}:NUMBER, from {low:g} to {high:g}.")
    return value


def _check_counts(images: int, hospitals: int, seed: int) -> None:
    if hospitals < 1:
        raise SettingRefused(f"A study needs at least one hospital, not {hospitals}.")
    if hospitals > images:
        raise SettingRefused(f"{images} images cannot be spread over {hospitals} hospitals; name fewer.")
    if seed < 0:
        raise SettingRefused(f"The seed must not be negative, as {seed} is.")
