"""A hospital's declared count: what it says in public of how many images it has."""

import math

MAXIMUM_DECLARED = 1_000_000
_BUCKET = 10


def declared_count(count: int) -> int:
    """A hospital's public count for enrolment: rounded up to the next multiple of 10, capped at a million.

    It is declared once, frozen for the study, and used as weight and denominator in place of the exact
    count, which is private.
    """
    return min(MAXIMUM_DECLARED, max(_BUCKET, math.ceil(count / _BUCKET) * _BUCKET))
