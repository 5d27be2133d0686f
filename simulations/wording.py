"""Numbers as a person reads them: one place for how many digits, which unit, and what None is called."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedward.simulations.markup import printable

ABSENT = "not measured"
TIMES = "\u00d7"  # the multiplication sign


def decimal(value: float | None, digits: int = 3) -> str:
    """A figure such as an AUC."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return ABSENT if value is None else f"{100 * value:.1f}%"


def size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            digits = 0 if unit == "B" or count >= 99.95 else 1 if count >= 9.995 else 2
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.1f}{TIMES}" if value < 99.95 else f"{value:.0f}{TIMES}"


def milliseconds(value: float | None) -> str:
    """A latency."""
    return ABSENT if value is None else f"{value:.3g} ms"


def duration(seconds: float) -> str:
    """A length of time."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def spent(epsilon: float | None) -> str:
    """A privacy cost, never shown as less than it is."""
    return ABSENT if epsilon is None else f"{math.ceil(round(1000 * epsilon, 6)) / 1000:.3f}"


def small(value: float | None) -> str:
    """A probability such as delta, or a budget."""
    return ABSENT if value is None else f"{value:.3g}"


def counted(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(words: Iterable[str]) -> str:
    """Words in a sentence."""
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last


def setting_rows(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every setting on its own row; those of a nested object as ``outer.inner``."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += setting_rows(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _setting(value)))
    return rows


def _setting(value: object) -> str:
    if value is None or value == "" or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else printable(value)
