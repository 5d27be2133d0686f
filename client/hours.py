"""Hours of the week by the wall clock, as a hospital's policy writes them: ``mon-fri 20:00-06:00``.

Days are one (``sat``), a list (``tue,thu``) or a range that may pass Sunday (``fri-mon``); without days,
every day. A window that ends before it begins runs into the next morning and belongs to the day on which it
began. When the clock is put forward or back, a window is as much shorter or longer.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from fedward.common.errors import PolicyRefused

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = "|".join(DAYS)
_WINDOW = re.compile(
    rf"(?:((?:{_DAY})(?:-(?:{_DAY})|(?:,(?:{_DAY}))*)) )?([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)"
)
_MIDNIGHT = 24 * 60


@dataclass(frozen=True)
class Hours:
    """One window.

    Attributes:
        text: as it was written.
        days: of its beginning, 0 for Monday.
        start, end: minutes since midnight; an end at or before the start is on the next day.
    """

    text: str
    days: frozenset[int]
    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "Hours":
        """The window that `text` spells.

        Raises:
            PolicyRefused: it spells none, or one of no length.
        """
        found = _WINDOW.fullmatch(text)
        numbers = [int(part) for part in found.groups()[1:]] if found else [0, 0, 0, 0]
        start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
        if not found or max(start, end) > _MIDNIGHT or start in (end, _MIDNIGHT):
            raise PolicyRefused(
                f"The policy's hours {text[:40]!r} are none: write them as 'mon-fri 20:00-06:00', "
                "'sat,sun 00:00-24:00' or '19:30-23:00'."
            )
        return cls(text, _days(found[1]), start, end)

    def hold(self, local: datetime) -> bool:
        """Whether the wall clock's `local` time is in the window; its end is not."""
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        began_yesterday = (day - 1) % 7 in self.days and minute < self.end
        return began_yesterday or (day in self.days and minute >= self.start)


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    if "-" in text:
        first, last = (DAYS.index(day) for day in text.split("-"))
        return frozenset((first + step) % 7 for step in range((last - first) % 7 + 1))
    return frozenset(DAYS.index(day) for day in text.split(","))
