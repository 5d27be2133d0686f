"""The study reads what the daemon's log says of each round and when Flower's own rounds begin."""

from pathlib import Path

import pytest

from fedward.simulations.phantoms import make_phantoms
from fedward.simulations.shipped_flower import _read
from fedward.simulations.studies.round_overhead import _answers, make_federation, overhead_study


def test_answers_are_read_in_order_and_other_lines_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(
        '{"event":"a message was answered","kind":"query","reply":0,"seconds":9.0}\n'
        '{"event":"a message was answered","kind":"train","reply":0,"seconds":0.5}\n'
        '{"event":"the daemon is up"}\n'
        "what a library printed {\n"
        '{"event":"a message was answered","kind":"train","reply":0,"seconds":0.25}\n'
    )
    assert _answers(tmp_path / "log") == [0.5, 0.25]


def test_rounds_of_flower_are_known_by_when_the_next_one_begins(tmp_path: Path) -> None:
    assert _read(tmp_path / "times") == []
    (tmp_path / "times").write_text("1.0\n2.5\n")
    assert _read(tmp_path / "times") == [1.0, 2.5]


@pytest.mark.parametrize("rounds", [1, 10])
def test_its_federation_is_one_that_the_study_names(tmp_path: Path, rounds: int) -> None:
    study = overhead_study(rounds)
    folder = make_federation(tmp_path / "s", study, make_phantoms(size=16, counts=(100, 20, 20), seed=0))
    assert folder.study() == study
    assert len(list((folder.path / "hospitals").iterdir())) == len(study.hospitals)
