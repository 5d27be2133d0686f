"""The report's drawings: inline, repeatable, in the page's colours, and safe with any name."""

import functools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest

from fedward.simulations import figures
from fedward.simulations.figures import (
    Bars,
    Line,
    bars_figure,
    budget_figure,
    dots_figure,
    roc_figure,
    rounds_figure,
)

HOSTILE = "<b onload='x'>&\"$\\frac{$_^ 漢字" + "w" * 200
ROUNDS = np.arange(1.0, 6.0)
NAMES = ("north", HOSTILE, "south")
DRAWN: dict[str, Callable[[], str]] = {
    "rounds": lambda: rounds_figure([Line("AUC", ROUNDS, ROUNDS / 6), Line(HOSTILE, ROUNDS, ROUNDS / 7)]),
    "rounds with a gap": lambda: rounds_figure(
        [Line("AUC", ROUNDS, np.array([0.5, np.nan, 0.6, np.nan, 0.7]))]
    ),
    "one round": lambda: rounds_figure([Line("AUC", np.ones(1), np.full(1, 0.8))]),
    "roc": lambda: roc_figure([Line(f"{HOSTILE}{n}", ROUNDS / 5, ROUNDS / 5) for n in range(30)]),
    "long roc": lambda: roc_figure([Line("a", np.linspace(0, 1, 30_000), np.linspace(0, 1, 30_000) ** 0.2)]),
    "dots": lambda: dots_figure(NAMES, (0.9, 0.95, 0.8), "AUC"),
    "one dot": lambda: dots_figure(("a",), (1.0,), "AUC"),
    "equal dots": lambda: dots_figure(("a", "b"), (0.0, 0.0), "AUC"),
    "many dots": lambda: dots_figure([f"h{n}" for n in range(500)], np.linspace(0, 1, 500).tolist(), "AUC"),
    "budget": lambda: budget_figure(NAMES, (2.9, 3.1, 0.0), (3.0, 3.0, None)),
    "many budgets": lambda: budget_figure(["h"] * 300, [1.0] * 300, [None] * 300),
    "bars": lambda: bars_figure([Bars("up", NAMES, (1, 2, 3), NAMES), Bars("down", ("a",), (0,), ("none",))]),
}


@functools.cache
def _drawn(name: str) -> str:
    return DRAWN[name]()


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_is_one_inline_svg_of_a_moderate_size(name: str) -> None:
    svg = _drawn(name)
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg"
    assert root.attrib.keys() == {"viewBox", "aria-hidden"}
    assert {element.tag for element in root.iter()} <= {
        "svg",
        "g",
        "path",
        "defs",
        "use",
        "text",
        "clipPath",
        "rect",
    }
    assert len(svg) < 150_000


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_refers_to_nothing_outside_itself(name: str) -> None:
    svg = _drawn(name)
    assert "://" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', svg))
    assert set(re.findall(r"url\((.)", svg)) <= {"#"}


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_uses_only_the_pages_colours_and_fonts(name: str) -> None:
    svg = _drawn(name)
    assert not re.findall(r"(?:fill|stroke|color): ?#[0-9a-fA-F]{3,8}", svg)
    assert "font-family" not in svg
    assert "var(--" in svg


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_data_give_the_same_drawing(name: str) -> None:
    assert DRAWN[name]() == _drawn(name)


@pytest.mark.parametrize("name", DRAWN)
def test_no_coordinate_is_nan_or_infinite(name: str) -> None:
    assert not re.search(r"\b(nan|inf)\b", _drawn(name))


def test_drawings_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    for draw in DRAWN.values():
        draw()
    assert [str(warning.message) for warning in recwarn] == []


def test_different_drawings_do_not_share_ids() -> None:
    ids = [
        set(re.findall(r' id="([^"]*)"', _drawn(name)))
        for name in ("rounds", "roc", "dots", "budget", "bars")
    ]
    assert sum(map(len, ids)) == len(set().union(*ids))
    twins = [
        re.findall(r' id="([^"]*)"', dots_figure(NAMES, (0.9, 0.95, 0.8), what)) for what in ("one", "two")
    ]
    assert not set(twins[0]) & set(twins[1])


def test_a_spent_budget_is_drawn_in_the_warning_colour() -> None:
    assert "var(--warn)" not in budget_figure(("a", "b"), (2.9, 3.0), (3.0, 3.0))
    assert "var(--warn)" in budget_figure(("a", "b"), (2.9, 3.1), (3.0, 3.0))


def test_few_hospitals_are_named_in_order_and_many_are_sorted_without_names() -> None:
    few = dots_figure(("first", "second"), (0.7, 0.9), "AUC")
    assert _height_of("first", few) < _height_of("second", few)
    count = figures.MOST_ROWS + 1
    many = dots_figure([f"h{n}" for n in range(count)], [0.5 + n / 100 for n in range(count)], "AUC")
    assert ">h3<" not in many
    assert f"{count} hospitals, sorted" in many
    heights = [
        (float(y), float(x))
        for x, y in re.findall(
            r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--accent', many
        )
    ]
    across = [x for _, x in sorted(heights)]
    assert len(across) == count
    assert across == sorted(across, reverse=True)


def test_a_thinned_curve_keeps_its_ends() -> None:
    x = np.linspace(0, 1, 10_001)
    thin_x, thin_y = figures._thinned(x, x**0.5)
    assert len(thin_x) == figures.MOST_POINTS
    assert (thin_x[0], thin_y[0], thin_x[-1], thin_y[-1]) == (0, 0, 1, 1)
    assert math.isclose(np.trapezoid(thin_y, thin_x), 2 / 3, abs_tol=1e-3)


def _height_of(name: str, svg: str) -> float:
    return float(re.findall(rf'y="([\d.]+)"[^>]*>{name}<', svg)[0])
