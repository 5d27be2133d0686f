"""Progress, read from a file that another process may still be writing."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedward.common.config import LocalSettings, Study
from fedward.common.mechanisms import Mechanism
from fedward.common.privacy import epsilon
from fedward.server.progress import read_events
from fedward.server.spent import spent_after
from fedward.simulations.watching import progress_bars


@pytest.fixture(scope="module")
def study(make_local: Callable[..., LocalSettings], make_study: Callable[..., Study]) -> Study:
    return make_study(make_local())


def shown(study: Study, path: Path, lines: list[object], console: Console) -> None:
    with progress_bars(study, path, console), path.open("ab") as file:
        for line in lines:
            file.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")


def events(rounds: int) -> list[object]:
    found: list[object] = [{"event": "enrolling", "hospitals": 3}]
    for number in range(1, rounds + 1):
        found.append({"event": "round", "round": number})
        found += [{"event": "reply", "hospital": f"hospital-{index}"} for index in range(3)]
        found.append(
            {"event": "closed", "round": number, "auc": 0.75, "refusals": [{}] if number == 2 else []}
        )
    return [*found, {"event": "finished"}]


def test_bars_end_where_the_study_does(study: Study, tmp_path: Path) -> None:
    out = io.StringIO()
    shown(study, tmp_path / "p", events(3), Console(file=out, width=100))
    assert re.search(r"rounds .* 3/3 .* AUC 0\.750 \(reference\)  epsilon \d+\.\d{3} of 50", out.getvalue())
    assert re.search(r"hospitals .* 3/3 ", out.getvalue())
    assert "\x1b" not in out.getvalue()


def test_a_resumed_run_is_not_shown_the_rounds_before_it(study: Study, tmp_path: Path) -> None:
    shown(study, tmp_path / "p", events(2), Console(file=io.StringIO()))
    out = io.StringIO()
    shown(study, tmp_path / "p", [], Console(file=out, width=100))
    assert re.search(r"rounds .* 0/3 .*enrolling", out.getvalue())


def test_lost_hospitals_and_training_without_privacy_are_told(
    make_local: Callable[..., LocalSettings], make_study: Callable[..., Study], tmp_path: Path
) -> None:
    out = io.StringIO()
    plain = make_study(make_local(noise_multiplier=0.0))
    shown(plain, tmp_path / "p", events(2), Console(file=out, width=100))
    assert re.search(r"no privacy  1 lost", out.getvalue())
    assert spent_after(plain, 2) is None


def test_damaged_lines_do_not_end_a_run(study: Study, tmp_path: Path) -> None:
    out = io.StringIO()
    odd: list[object] = [b"\x80\xff", b"{", b"[]", b"5", b"null", b'{"no": "event"}', b""]
    shown(study, tmp_path / "p", [*odd, *events(1), *odd], Console(file=out, width=100))
    assert " 1/3 " in out.getvalue()


def test_a_small_budget_is_not_shown_as_nothing(
    make_local: Callable[..., LocalSettings], make_study: Callable[..., Study], tmp_path: Path
) -> None:
    out = io.StringIO()
    strict = make_study(make_local(noise_multiplier=1000.0), target_epsilon=0.004)
    shown(strict, tmp_path / "p", events(1), Console(file=out, width=100))
    assert re.search(r"epsilon 0\.00[1-9] of 0\.004", out.getvalue())


def test_what_is_spent_is_the_accountants_word(study: Study) -> None:
    local = study.local
    assert spent_after(study, 2) == epsilon([Mechanism(local.noise_multiplier, 0.25, 2)], 1e-5)


@given(st.lists(st.binary(max_size=6) | st.just(b'{"event":"x"}'), max_size=8), st.integers(0, 60))
def test_events_are_read_once_each_however_the_file_grows(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cut: int
) -> None:
    data = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    path = tmp_path_factory.getbasetemp() / "events"
    path.write_bytes(data[:cut])
    first, offset = read_events(path, 0)
    path.write_bytes(data)
    second, end = read_events(path, offset)
    assert end == len(data)
    assert len(first + second) == sum(line == b'{"event":"x"}' for line in lines)
    assert read_events(path, end) == ([], end)


def test_a_file_that_is_not_there_yet_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none", 7) == ([], 7)
