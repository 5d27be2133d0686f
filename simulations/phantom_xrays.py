"""Synthetic chest X-rays: a thorax of ellipses, lungs, ribs, heart, exposure, and lesions in the lungs.

No patient is behind any of them, and they teach nothing about patients: they try the machinery.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedward.simulations.painting import Canvas, Column, Layer, as_bytes, blob, edge, ellipse, line

FINDINGS = ("nodule", "consolidation", "effusion")


@dataclass(frozen=True)
class _Anatomy:
    """Where a batch's lungs are: coverage, centres and half axes; the left one's x is negative."""

    lungs: Layer
    lung_x: Column
    lung_y: Column
    lung_width: Column
    lung_height: Column
    diaphragm: Column


def paint_xrays(canvas: Canvas, findings: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Paint chests, each with those findings that its row says.

    Args:
        canvas: the batch.
        findings: (n, 3), whether each of `FINDINGS` is there.

    Returns:
        uint8, (n, size, size, 1).
    """
    anatomy = _anatomy(canvas)
    image = _chest(canvas, anatomy)
    image = image + _vessels(canvas, anatomy)
    for paint, present in zip((_nodule, _consolidation, _effusion), findings.T, strict=True):
        image = image + paint(canvas, anatomy) * present[:, np.newaxis, np.newaxis]
    return _exposed(canvas, image)[..., np.newaxis]


def _anatomy(canvas: Canvas) -> _Anatomy:
    lung_x, lung_y = canvas.normal(0.43, 0.025), canvas.normal(-0.06, 0.04)
    width, height = canvas.normal(0.31, 0.025), canvas.normal(0.68, 0.05)
    diaphragm = canvas.normal(0.55, 0.04)
    lean = canvas.normal(0.1, 0.04)
    lungs = np.zeros((canvas.count, canvas.size, canvas.size), dtype=np.float32)
    for side in (-1, 1):
        field = ellipse(canvas, lung_y, side * lung_x, height, width, 0.045, -side * lean)
        # The domes of the diaphragm close the lungs from below; the heart's side hangs lower.
        dome = diaphragm + 0.04 * side + 1.1 * (canvas.x - side * lung_x) ** 2
        lungs = np.maximum(lungs, field * edge(dome - canvas.y, 0.03))
    return _Anatomy(lungs, lung_x, lung_y, width, height, diaphragm)


def _chest(canvas: Canvas, anatomy: _Anatomy) -> Layer:
    """Body, lungs, heart, ribs and collar bones; brightness is density, 0 to about 1."""
    body = ellipse(canvas, 0.45, 0.0, canvas.normal(1.55, 0.08), canvas.normal(0.98, 0.05), 0.06)
    spine = edge(0.09 - np.abs(canvas.x), 0.04)
    heart = ellipse(
        canvas,
        canvas.normal(0.24, 0.04),
        canvas.normal(0.1, 0.03),
        canvas.normal(0.3, 0.03),
        canvas.normal(0.27, 0.035),
        0.06,
        -0.5,
    )
    air = anatomy.lungs * (1 - 0.85 * heart)
    density: Layer = body * canvas.normal(0.62, 0.03) + 0.1 * spine + 0.12 * heart
    density = density - canvas.normal(0.4, 0.03) * air
    return density + _ribs(canvas) * (0.3 + 0.7 * air) * body


def _ribs(canvas: Canvas) -> Layer:
    """Bright bands that fall outwards on both sides, and the two collar bones above."""
    out = np.abs(canvas.x)
    spacing, phase = canvas.normal(0.26, 0.015), canvas.uniform(0, 1)
    level = (canvas.y - 0.45 * out**1.5) / spacing + phase
    ribs = np.clip(np.cos(2 * np.pi * level), 0, 1) * edge(out - 0.12, 0.05)
    collar = line(canvas.y + canvas.normal(0.7, 0.04) + 0.2 * out, 0.045) * edge(out - 0.12, 0.03)
    layer: Layer = canvas.normal(0.05, 0.015) * ribs + 0.1 * collar
    return layer


def _vessels(canvas: Canvas, anatomy: _Anatomy) -> Layer:
    """Vessels at both roots of the lungs: small bright spots that every chest has, and lesions hide among."""
    layer = np.zeros((canvas.count, canvas.size, canvas.size), dtype=np.float32)
    for side in (-1, 1):
        for _ in range(3):
            y = canvas.normal(0.0, 0.16)
            x = side * (anatomy.lung_x - canvas.uniform(-0.02, 0.22))
            layer += canvas.uniform(0.02, 0.1) * blob(canvas, y, x, canvas.uniform(0.04, 0.09))
    return layer * anatomy.lungs + 0.03 * canvas.mottle(7) * anatomy.lungs


def _place(canvas: Canvas, anatomy: _Anatomy, reach: float) -> tuple[Column, Column]:
    """A random point in either lung, within `reach` of its half axes."""
    side = np.where(canvas.uniform(0, 1) < 0.5, -1, 1).astype(np.float32)
    angle, away = canvas.uniform(0, 2 * np.pi), reach * np.sqrt(canvas.uniform(0, 1))
    y = anatomy.lung_y - 0.08 + away * np.sin(angle) * anatomy.lung_height * 0.75
    return y, side * anatomy.lung_x + away * np.cos(angle) * anatomy.lung_width


def _nodule(canvas: Canvas, anatomy: _Anatomy) -> Layer:
    """A round opacity, small and dense or larger and faint."""
    y, x = _place(canvas, anatomy, 0.75)
    radius = canvas.uniform(0.11, 0.2)
    return canvas.uniform(0.18, 0.45) * ellipse(canvas, y, x, radius, radius, 0.04)


def _consolidation(canvas: Canvas, anatomy: _Anatomy) -> Layer:
    """A large, patchy cloud within one lung."""
    y, x = _place(canvas, anatomy, 0.6)
    patchy: Layer = np.clip(1 + 0.35 * canvas.mottle(9), 0.2, 1.8)
    cloud = blob(canvas, y, x, canvas.uniform(0.2, 0.4))
    return canvas.uniform(0.13, 0.4) * cloud * patchy * anatomy.lungs


def _effusion(canvas: Canvas, anatomy: _Anatomy) -> Layer:
    """Fluid that fills one lung's base and climbs its outer wall."""
    side = np.where(canvas.uniform(0, 1) < 0.5, -1, 1).astype(np.float32)
    outwards = (side * canvas.x - anatomy.lung_x) / anatomy.lung_width
    level = anatomy.diaphragm - canvas.uniform(0.06, 0.4) - 0.12 * np.clip(outwards, -1, 1) ** 3
    wet = edge(canvas.y - level, 0.05) * edge(side * canvas.x, 0.03)
    return canvas.uniform(0.18, 0.4) * wet * anatomy.lungs


def _exposed(canvas: Canvas, density: Layer) -> npt.NDArray[np.uint8]:
    """Film: an uneven field, exposure, contrast, grain."""
    field = density * (1 + canvas.normal(0, 0.04) * canvas.x + canvas.normal(0, 0.04) * canvas.y)
    exposed = np.clip(field, 0.0, 1.2) ** canvas.uniform(0.85, 1.2)
    film = exposed * canvas.uniform(0.9, 1.15) + canvas.normal(0.03, 0.02)
    film = film + canvas.uniform(0.01, 0.035) * canvas.grain()
    return as_bytes(film)
