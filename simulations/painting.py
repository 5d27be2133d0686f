"""Strokes that the phantoms are painted with, each on a whole batch of images at once.

Coordinates run from -1 to 1 over the image's height (y, downwards) and width (x). A stroke takes one number
for all images or a column of one each, (n, 1, 1), and gives coverage from 0 to 1, (n, size, size).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# float32 in practice; numpy's types cannot say that a Python number keeps it so.
Layer = npt.NDArray[np.floating[Any]]  # (n, size, size)
Column = npt.NDArray[np.floating[Any]]  # (n, 1, 1)
Number = Column | float


@dataclass(frozen=True)
class Canvas:
    """A batch of `count` square images of `size` pixels, and the generator that all its chances come from."""

    count: int
    size: int
    rng: np.random.Generator

    @property
    def y(self) -> Layer:
        """Height of each pixel, (1, size, 1)."""
        return self._axis()[:, :, np.newaxis]

    @property
    def x(self) -> Layer:
        """Sideways place of each pixel, (1, 1, size)."""
        return self._axis()[:, np.newaxis, :]

    def _axis(self) -> Layer:
        return ((np.arange(self.size, dtype=np.float32) + 0.5) * 2 / self.size - 1)[np.newaxis]

    def uniform(self, low: float, high: float) -> Column:
        """One number for each image, (n, 1, 1)."""
        return self.rng.uniform(low, high, (self.count, 1, 1)).astype(np.float32)

    def normal(self, mean: float, deviation: float) -> Column:
        """One number for each image, (n, 1, 1), at most two deviations from the mean."""
        drawn = self.rng.standard_normal((self.count, 1, 1), dtype=np.float32)
        return np.float32(mean) + np.float32(deviation) * np.clip(drawn, -2, 2)

    def grain(self) -> Layer:
        """Independent noise of deviation 1 in each pixel."""
        return self.rng.standard_normal((self.count, self.size, self.size), dtype=np.float32)

    def mottle(self, cells: int) -> Layer:
        """Smooth noise of deviation about 1: a grid of cells x cells numbers, interpolated."""
        knots = self.rng.standard_normal((self.count, cells, cells), dtype=np.float32)
        weights = _interpolation(self.size, cells)
        mottle: Layer = np.float32(1.5) * (weights @ knots @ weights.T)
        return mottle


def edge(distance: Layer, softness: Number) -> Layer:
    """1 where `distance` is well above 0, 0 well below, and a smooth step of width `softness` between."""
    step: Layer = 0.5 + 0.5 * np.tanh(distance / (2 * softness))
    return step


def ellipse(
    canvas: Canvas,
    y: Number,
    x: Number,
    height: Number,
    width: Number,
    softness: Number = 0.05,
    tilt: Number = 0.0,
) -> Layer:
    """A filled ellipse with half axes `height` and `width`, leaning by `tilt` radians."""
    down, right = canvas.y - y, canvas.x - x
    lean = np.asarray(tilt, dtype=np.float32)
    along = (down * np.cos(lean) + right * np.sin(lean)) / height
    across = (right * np.cos(lean) - down * np.sin(lean)) / width
    return edge(1 - np.sqrt(along**2 + across**2), softness / np.minimum(height, width))


def blob(canvas: Canvas, y: Number, x: Number, radius: Number) -> Layer:
    """A round spot without an edge: a Gaussian of deviation `radius`."""
    squared = (canvas.y - y) ** 2 + (canvas.x - x) ** 2
    spot: Layer = np.exp(-squared / (2 * radius**2))
    return spot


def line(distance: Layer, width: float) -> Layer:
    """A soft line where `distance` is 0."""
    stroke: Layer = np.exp(-((distance / width) ** 2))
    return stroke


def as_bytes(image: Layer) -> npt.NDArray[np.uint8]:
    """Brightness 0 to 1 as 0 to 255; what lies outside is cut off."""
    pixels: npt.NDArray[np.uint8] = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    return pixels


def _interpolation(size: int, cells: int) -> npt.NDArray[np.float32]:
    """(size, cells) weights of linear interpolation between `cells` knots spread over `size` pixels."""
    place = np.linspace(0, cells - 1, size)[:, np.newaxis]
    weights: npt.NDArray[np.float32] = np.maximum(0, 1 - np.abs(place - np.arange(cells))).astype(np.float32)
    return weights
