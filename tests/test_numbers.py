"""A number is used once by its sender and taken once by its receiver, whatever crashes."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedward.common import numbers as numbers_module
from fedward.common.errors import EnvelopeReplayed, LedgerRefused
from fedward.common.numbers import (
    ANY_ORDER,
    HIGHEST_NUMBER,
    IN_ORDER,
    WINDOW,
    Arrival,
    NextNumber,
    Numbers,
)

KEY, OTHER = "a" * 64, "b" * 64


def digest(number: int, content: int = 0) -> str:
    return f"{number:032x}{content:032x}"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 1), st.sampled_from([IN_ORDER, ANY_ORDER]))))
def test_no_message_is_taken_twice_in_any_order_and_across_restarts(
    tmp_path_factory: pytest.TempPathFactory, messages: list[tuple[int, int, frozenset[Arrival]]]
) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    taken: list[int] = []
    for number, content, accepted in messages:
        is_fresh = not taken or number > max(taken)
        may = number not in taken and (
            is_fresh or (accepted is ANY_ORDER and not _below_window(taken, number))
        )
        try:
            arrival = Numbers(folder).take(KEY, number, digest(number, content), accepted)
        except EnvelopeReplayed:
            assert not may
        else:
            assert may
            assert arrival is (Arrival.FRESH if is_fresh else Arrival.LATE)
            taken.append(number)


def _below_window(taken: list[int], number: int) -> bool:
    return len(taken) >= WINDOW and number < min(sorted(taken)[-WINDOW:])


def test_what_is_below_the_window_is_refused_and_the_file_stays_small(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path)
    for number in range(10, 10 + 2 * WINDOW):
        numbers.take(KEY, number, digest(number))
    lowest = 10 + WINDOW
    assert numbers.take(KEY, lowest, digest(lowest), frozenset(Arrival)) is Arrival.AGAIN
    for number in (5, lowest - 1):
        with pytest.raises(EnvelopeReplayed, match="older than the last"):
            numbers.take(KEY, number, digest(number), frozenset(Arrival))
    assert (tmp_path / f"{KEY}.json").stat().st_size < 10_000


def test_the_very_same_message_may_come_again_where_it_is_accepted(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path)
    numbers.take(KEY, 3, digest(3), frozenset(Arrival))
    before = (tmp_path / f"{KEY}.json").read_bytes()
    assert numbers.take(KEY, 3, digest(3), frozenset(Arrival)) is Arrival.AGAIN
    assert (tmp_path / f"{KEY}.json").read_bytes() == before
    with pytest.raises(EnvelopeReplayed, match="other content"):
        numbers.take(KEY, 3, digest(3, 1), frozenset(Arrival))


def test_each_key_has_its_own_numbers(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path)
    numbers.take(KEY, 9, digest(9))
    assert numbers.take(OTHER, 3, digest(3)) is Arrival.FRESH


def test_a_crash_while_it_is_noted_hands_nothing_on_and_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Numbers(tmp_path).take(KEY, 3, digest(3))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(numbers_module, "write_atomically", crash)
        with pytest.raises(KeyboardInterrupt):
            Numbers(tmp_path).take(KEY, 4, digest(4))
    with pytest.raises(EnvelopeReplayed):
        Numbers(tmp_path).take(KEY, 3, digest(3))
    assert Numbers(tmp_path).take(KEY, 4, digest(4)) is Arrival.FRESH


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema":"fedward.numbers/1","taken":[]}',
        '{"schema":"fedward.numbers/2","taken":[[1,"%s"]]}' % ("0" * 64),
        '{"schema":"fedward.numbers/1","taken":[["1","%s"]]}' % ("0" * 64),
        '{"schema":"fedward.numbers/1","taken":[[1,"x"]]}',
        '{"schema":"fedward.numbers/1","taken":3}',
        '{"schema": "fedward.numbers/1","taken":[[1,"%s"]]}' % ("0" * 64),
    ],
)
def test_a_damaged_file_is_refused_never_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{KEY}.json").write_text(text)
    with pytest.raises(LedgerRefused, match="damaged"):
        Numbers(tmp_path).take(KEY, 3, digest(3))


def test_a_key_id_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64"):
        Numbers(tmp_path).take("../x", 3, digest(3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_numbers_rise_whatever_the_clock_does(
    tmp_path_factory: pytest.TempPathFactory, clock: list[int]
) -> None:
    path = tmp_path_factory.mktemp("next") / "next-number"
    given_out = [NextNumber(path).take(now) for now in clock]
    assert given_out == sorted(set(given_out))
    assert all(number >= now * 1000 for number, now in zip(given_out, clock, strict=True))


def test_a_standby_with_an_older_copy_goes_on_above_what_was_used(tmp_path: Path) -> None:
    used = [NextNumber(tmp_path / "old").take(1_800_000_000 + step) for step in range(3)]
    (tmp_path / "copy").write_bytes(b"%d\n" % used[0])
    assert NextNumber(tmp_path / "copy").take(1_800_000_005) > used[-1]


def test_two_threads_never_get_the_same_number(tmp_path: Path) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.extend(NextNumber(tmp_path / "n").take(5) for _ in range(10)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 30


@pytest.mark.parametrize("text", [b"", b"x\n", b"-1\n", b"1", b"9" * 17 + b"\n"])
def test_a_damaged_counter_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "n").write_bytes(text)
    with pytest.raises(LedgerRefused, match="damaged"):
        NextNumber(tmp_path / "n").take(5)


def test_a_clock_far_in_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerRefused, match="clock"):
        NextNumber(tmp_path / "n").take(HIGHEST_NUMBER)
    assert NextNumber(tmp_path / "n").take(5) == 5000
