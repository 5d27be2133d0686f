"""Embedded data sets of synthetic images: where no real one is to be had, and for colour and multi-label.

Kinds: ``xray`` (grey, binary: no lesion or lesion), ``findings`` (grey, multi-label: three kinds of lesion)
and ``cell`` (RGB, two or four classes). They say that they are synthetic wherever their source is shown.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedward.common.datasets import ImageDataset, Split, fingerprint
from fedward.common.errors import SettingRefused, UnknownName
from fedward.simulations.painting import Canvas
from fedward.simulations.phantom_cells import CELLS, paint_cells
from fedward.simulations.phantom_xrays import FINDINGS, paint_xrays

CLASSES: dict[str, dict[int, tuple[str, ...]]] = {
    "xray": {2: ("no lesion", "lesion")},
    "findings": {3: FINDINGS},
    "cell": CELLS,
}
NAMES = {"xray": "phantom", "findings": "phantom-findings", "cell": "phantom-colour"}
DEFAULT_COUNTS = (1200, 200, 400)  # train, val, test
MIN_SIZE, MAX_SIZE = 16, 512  # pixels
MAX_IMBALANCE = 1000.0
MAX_PIXELS = 2**30  # of all splits together
_BATCH_PIXELS = 2**19  # painted at once, so that memory does not grow with the counts

Labels = npt.NDArray[np.int64]


def make_phantoms(
    kind: str = "xray",
    classes: int | None = None,
    imbalance: float = 1.0,
    size: int = 28,
    counts: tuple[int, int, int] = DEFAULT_COUNTS,
    seed: int = 0,
) -> ImageDataset:
    """Paint a data set; the same arguments give the same one.

    Args:
        kind: ``xray``, ``findings`` or ``cell``.
        classes: how many; 2 for ``xray``, 3 findings for ``findings``, 2 or 4 for ``cell``.
        imbalance: how many times rarer the last class is than each other one; for ``findings``, how many
            images are without a finding for one that has it.
        size: side in pixels.
        counts: images in train, val and test.
        seed: not negative.

    Raises:
        UnknownName: no such kind.
        SettingRefused: a number is out of range, or no class could have an image in every split.
    """
    names = _class_names(kind, classes)
    _check_numbers(len(names), imbalance, size, counts, seed)
    # One stream a split: a longer training split leaves the test split as it is.
    streams = np.random.SeedSequence(seed).spawn(3)
    train, val, test = (
        _make_split(kind, names, imbalance, size, count, np.random.default_rng(stream))
        for count, stream in zip(counts, streams, strict=True)
    )
    ratio = f", {imbalance:g}:1" if imbalance != 1 else ""
    source = f"synthetic phantoms, not patients ({kind}, {size} x {size}, seed {seed}{ratio})"
    task = "multi-label" if kind == "findings" else "binary" if len(names) == 2 else "multi-class"
    return ImageDataset(NAMES[kind], source, fingerprint(train, val, test), task, names, train, val, test)


def _class_names(kind: str, classes: int | None) -> tuple[str, ...]:
    if kind not in CLASSES:
        raise UnknownName(f"No phantoms of kind {kind!r}; there are {', '.join(CLASSES)}.")
    choices = CLASSES[kind]
    if classes is None:
        return next(iter(choices.values()))
    if classes not in choices:
        offered = " or ".join(map(str, choices))
        raise SettingRefused(f"Phantoms of kind {kind} have {offered} classes, not {classes}.")
    return choices[classes]


def _check_numbers(
    classes: int, imbalance: float, size: int, counts: tuple[int, int, int], seed: int
) -> None:
    if not 1 <= imbalance <= MAX_IMBALANCE:
        raise SettingRefused(f"Phantoms' imbalance must be from 1 to {MAX_IMBALANCE:g}, not {imbalance}.")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise SettingRefused(f"Phantoms' size must be from {MIN_SIZE} to {MAX_SIZE} pixels, not {size}.")
    if min(counts) < classes:
        raise SettingRefused(f"Each split of phantoms needs at least {classes} images, one a class.")
    if sum(counts) * size**2 > MAX_PIXELS:
        raise SettingRefused(
            "So many phantoms of this size do not fit into memory; name fewer or smaller ones."
        )
    if seed < 0:
        raise SettingRefused(f"The seed must not be negative, as {seed} is.")


def _make_split(
    kind: str, names: tuple[str, ...], imbalance: float, size: int, count: int, rng: np.random.Generator
) -> Split:
    labels = (_draw_findings if kind == "findings" else _draw_classes)(len(names), imbalance, count, rng)
    paint = _PAINTERS[kind]
    step = max(1, _BATCH_PIXELS // size**2)
    batches = [labels[start : start + step] for start in range(0, count, step)]
    images = [paint(Canvas(len(batch), size, rng), batch, names) for batch in batches]
    return Split(np.concatenate(images), labels)


def _draw_classes(classes: int, imbalance: float, count: int, rng: np.random.Generator) -> Labels:
    """(n,) in random order: exact shares, the last class `imbalance` times rarer, each at least once."""
    rare = max(1, round(count / (1 + (classes - 1) * imbalance)))
    common = np.arange(count - rare) % (classes - 1)
    return rng.permutation(np.concatenate([common, np.full(rare, classes - 1)])).astype(np.int64)


def _draw_findings(findings: int, imbalance: float, count: int, rng: np.random.Generator) -> Labels:
    """(n, findings) of 0/1: each finding in its exact share of the images, independently of the others."""
    present = np.arange(count) < max(1, round(count / (1 + imbalance)))
    return np.stack([rng.permutation(present) for _ in range(findings)], axis=1).astype(np.int64)


def _xrays(canvas: Canvas, labels: Labels, names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """Class 1 is one lesion: a nodule or a consolidation."""
    lesion = np.where(canvas.rng.random(len(labels)) < 0.5, 0, 1)
    return paint_xrays(canvas, (labels[:, np.newaxis] == 1) & (lesion[:, np.newaxis] == np.arange(3)))


def _findings(canvas: Canvas, labels: Labels, names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    return paint_xrays(canvas, labels == 1)


def _cells(canvas: Canvas, labels: Labels, names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    return paint_cells(canvas, np.array(names)[labels])


_PAINTERS: dict[str, Callable[[Canvas, Labels, tuple[str, ...]], npt.NDArray[np.uint8]]] = {
    "xray": _xrays,
    "findings": _findings,
    "cell": _cells,
}
