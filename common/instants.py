"""Moments as documents spell them: UTC, whole seconds, ``2026-01-31T12:00:00Z`` (RFC 3339)."""

import re
from datetime import UTC, datetime

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
# strptime alone would take digits of other scripts and missing zeros.
_SPELLED = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def utc_now() -> datetime:
    """Now, in UTC, cut to the second: what is spelled out and read again is equal."""
    return datetime.now(UTC).replace(microsecond=0)


def spelled(moment: datetime) -> str:
    """A moment, which knows its time zone, as text."""
    return moment.astimezone(UTC).strftime(_FORMAT)


def parsed(text: object) -> datetime:
    """The moment that `spelled` spelled.

    Raises:
        ValueError: another spelling, or no moment.
    """
    if not isinstance(text, str) or not _SPELLED.fullmatch(text):
        raise ValueError("a moment is spelled like 2026-01-31T12:00:00Z")
    return datetime.strptime(text, _FORMAT).replace(tzinfo=UTC)
