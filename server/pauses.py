"""When a node that failed may be asked again: after a second, then after twice as long each time.

What a node is asked may be large, and what is wrong with it may last: a clock, a revoked key, a daemon that
is down. So nobody is asked each second for a round's hours.
"""

import time

_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 30.0


class Pauses:
    """How long each node is left alone; one that never failed may be asked at once."""

    def __init__(self) -> None:
        """Nobody has failed yet."""
        self._seconds: dict[int, float] = {}
        self._ends: dict[int, float] = {}

    def failed(self, node_id: int) -> None:
        """Its next pause begins, twice as long as its last, at most half a minute."""
        before = self._seconds.get(node_id)
        pause = _FIRST_SECONDS if before is None else min(2 * before, _LONGEST_SECONDS)
        self._seconds[node_id], self._ends[node_id] = pause, time.monotonic() + pause

    def answered(self, node_id: int) -> None:
        """All is well with it again."""
        self._seconds.pop(node_id, None)
        self._ends.pop(node_id, None)

    def is_over(self, node_id: int) -> bool:
        """Whether it may be asked."""
        return time.monotonic() >= self._ends.get(node_id, 0.0)
