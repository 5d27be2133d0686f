"""Whoever fails again and again is left alone for longer each time, and never for good."""

import pytest

from fedward.server import pauses as module
from fedward.server.pauses import Pauses


def test_pauses_double_up_to_half_a_minute_and_end_with_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    pauses, found = Pauses(), []
    for _ in range(7):
        assert pauses.is_over(1)
        pauses.failed(1)
        begun = now[0]
        while not pauses.is_over(1):
            now[0] += 0.5
        found.append(now[0] - begun)
    assert found == [1, 2, 4, 8, 16, 30, 30]
    assert pauses.is_over(2)
    pauses.failed(1)
    pauses.answered(1)
    assert pauses.is_over(1)
    pauses.failed(1)
    now[0] += 1
    assert pauses.is_over(1)
