"""Synthetic blood cells: one white cell on a stained smear among red ones, told apart by its nucleus.

No patient is behind any of them, and they teach nothing about patients: they try the machinery.
"""

import numpy as np
import numpy.typing as npt

from fedward.simulations.painting import Canvas, Column, Layer, as_bytes, blob, edge, ellipse

# By the number of classes; the last is the one that may be rare.
CELLS: dict[int, tuple[str, ...]] = {
    2: ("round nucleus", "blast-like"),
    4: ("round nucleus", "lobed nucleus", "bean nucleus", "blast-like"),
}

Colour = tuple[float, float, float]
_SMEAR: Colour = (0.93, 0.87, 0.83)
_RED: Colour = (0.86, 0.62, 0.6)
_CYTOPLASM: Colour = (0.76, 0.77, 0.87)
_NUCLEUS: Colour = (0.44, 0.27, 0.56)
_NUCLEOLUS: Colour = (0.66, 0.52, 0.76)


def paint_cells(canvas: Canvas, names: npt.NDArray[np.str_]) -> npt.NDArray[np.uint8]:
    """Paint one white cell an image.

    Args:
        canvas: the batch.
        names: (n,), a class of `CELLS` for each image.

    Returns:
        uint8, (n, size, size, 3).
    """
    shape = (canvas.count, canvas.size, canvas.size, 3)
    image: Layer = np.broadcast_to(np.array(_SMEAR, dtype=np.float32), shape)
    image = _red_cells(canvas, image)
    y, x, radius = canvas.normal(0, 0.08), canvas.normal(0, 0.08), canvas.normal(0.6, 0.04)
    tilt = canvas.uniform(0, np.pi)
    body = ellipse(canvas, y, x, radius, radius * canvas.uniform(0.88, 1.0), 0.05, tilt)
    image = _stained(canvas, image, body, _CYTOPLASM, 0.04)
    blast = (names == "blast-like")[:, np.newaxis, np.newaxis]
    nucleus = _nucleus(canvas, names, y, x, radius) * body
    image = _stained(canvas, image, nucleus * (1 + 0.08 * canvas.mottle(9)), _NUCLEUS, 0.05)
    image = _stained(canvas, image, _nucleoli(canvas, y, x, radius) * nucleus * blast, _NUCLEOLUS, 0.03)
    return _photographed(canvas, image)


def _red_cells(canvas: Canvas, image: Layer) -> Layer:
    """Four pale-centred discs about the rim."""
    for quarter in range(4):
        angle = canvas.uniform(0, np.pi / 2) + quarter * np.pi / 2
        away = canvas.uniform(0.95, 1.5)
        y, x, radius = away * np.sin(angle), away * np.cos(angle), canvas.normal(0.4, 0.03)
        disc = ellipse(canvas, y, x, radius, radius, 0.05) * (1 - 0.5 * blob(canvas, y, x, 0.4 * radius))
        image = _stained(canvas, image, disc, _RED, 0.03)
    return image


def _nucleus(canvas: Canvas, names: npt.NDArray[np.str_], y: Column, x: Column, radius: Column) -> Layer:
    shapes = {
        "round nucleus": _round(canvas, y, x, radius, canvas.normal(0.62, 0.06)),
        "lobed nucleus": _lobed(canvas, y, x, radius),
        "bean nucleus": _bean(canvas, y, x, radius),
        # A blast fills more of its cell than a mature cell, yet their ranges meet.
        "blast-like": _round(canvas, y, x, radius, canvas.normal(0.78, 0.06)),
    }
    nucleus = np.zeros((canvas.count, canvas.size, canvas.size), dtype=np.float32)
    for name, shape in shapes.items():
        nucleus[names == name] = shape[names == name]
    return nucleus


def _round(canvas: Canvas, y: Column, x: Column, radius: Column, share: Column) -> Layer:
    across = radius * share * canvas.uniform(0.8, 1.0)
    return ellipse(canvas, y, x, radius * share, across, 0.05, canvas.uniform(0, np.pi))


def _lobed(canvas: Canvas, y: Column, x: Column, radius: Column) -> Layer:
    """Three lobes on an arc, touching or nearly so."""
    turn, spread = canvas.uniform(0, 2 * np.pi), canvas.uniform(0.9, 1.7)
    lobes = np.zeros((canvas.count, canvas.size, canvas.size), dtype=np.float32)
    for lobe in (-1, 0, 1):
        angle, size = turn + lobe * spread, radius * canvas.normal(0.36, 0.03)
        place_y, place_x = y + 0.45 * radius * np.sin(angle), x + 0.45 * radius * np.cos(angle)
        lobes = np.maximum(lobes, ellipse(canvas, place_y, place_x, size, size * 0.9, 0.05, angle))
    return lobes


def _bean(canvas: Canvas, y: Column, x: Column, radius: Column) -> Layer:
    """An ellipse with a notch in one side."""
    turn = canvas.uniform(0, 2 * np.pi)
    whole = ellipse(canvas, y, x, radius * 0.62, radius * 0.78, 0.05, turn)
    depth = radius * canvas.uniform(0.5, 0.75)
    notch = ellipse(
        canvas, y + depth * np.cos(turn), x + depth * np.sin(turn), radius * 0.34, radius * 0.34, 0.05
    )
    return whole * (1 - notch)


def _nucleoli(canvas: Canvas, y: Column, x: Column, radius: Column) -> Layer:
    """One to three pale spots within a blast's nucleus, sometimes hardly to be seen."""
    spots = np.zeros((canvas.count, canvas.size, canvas.size), dtype=np.float32)
    for spot in range(3):
        angle, away = canvas.uniform(0, 2 * np.pi), radius * canvas.uniform(0.1, 0.45)
        there = edge(canvas.uniform(-1, 1) + 1 - spot, 0.01)
        spots = np.maximum(
            spots, there * blob(canvas, y + away * np.sin(angle), x + away * np.cos(angle), 0.13 * radius)
        )
    return canvas.uniform(0.2, 1.0) * spots


def _stained(canvas: Canvas, image: Layer, cover: Layer, colour: Colour, spread: float) -> Layer:
    """The image with `colour`, which varies by `spread` between images, laid over it where `cover` is."""
    stain = np.stack([canvas.normal(value, spread)[:, 0] for value in colour], axis=-1)[:, np.newaxis]
    opacity = np.clip(cover, 0, 1)[..., np.newaxis]
    return image + opacity * (stain - image)


def _photographed(canvas: Canvas, image: Layer) -> npt.NDArray[np.uint8]:
    """Lamp colour, exposure and grain."""
    lamp = np.stack([canvas.normal(1, 0.03)[:, 0] for _ in range(3)], axis=-1)[:, np.newaxis]
    photo = image * lamp * canvas.uniform(0.88, 1.05)[..., np.newaxis]
    grain = np.stack([canvas.grain() for _ in range(3)], axis=-1)
    photo = photo + canvas.uniform(0.01, 0.035)[..., np.newaxis] * grain
    return as_bytes(photo)
