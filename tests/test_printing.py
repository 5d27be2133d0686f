"""What is printed of a name steers no terminal, and no two names are printed alike."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedward.common.printing import printable, unmistakable


@given(st.text())
def test_what_is_printed_is_printable(text: str) -> None:
    assert all(letter.isprintable() for letter in printable(text))
    assert all(letter.isprintable() for letter in unmistakable(text))


def _seen(text: str) -> str:
    """What a person tells apart, at most: spaces do not show."""
    return " ".join(text.split())


@given(st.text(), st.text())
@example("chest", "chest ")
@example("a b", "a  b")
@example("\u202e", "\\u202e")
@example("\\u202e", "\\\\u202e")
def test_two_names_never_look_alike(one: str, other: str) -> None:
    assert one == other or _seen(unmistakable(one)) != _seen(unmistakable(other))


@pytest.mark.parametrize("lookalike", ["chest", " chest", "\u202echest", "\u0441hest", "chest\n"])
def test_nothing_passes_for_another_studys_mark(lookalike: str) -> None:
    """A study that calls itself what another is shown as is shown otherwise."""
    shown = unmistakable(lookalike)
    assert shown == lookalike == "chest" or "#" in shown
    assert unmistakable(shown) == shown if "#" not in shown else unmistakable(shown) != shown


def test_a_plain_name_is_itself() -> None:
    for name in ("chest", "chest-2026 first arm (north)", "[red]x", "#1"):
        assert unmistakable(name) == name
