"""Bits against accuracy: what the study's targets say, and that a row is a run of the defaults."""

import re
from pathlib import Path
from typing import Any

import pytest

from fedward.simulations.options import Options
from fedward.simulations.prepare import prepare
from fedward.simulations.studies import wire
from fedward.simulations.studies.rows import Row
from fedward.simulations.studies.wire_chart import write_chart

GOOD = {wire.PLAIN: 0.92, wire.DEFAULT: 0.918, wire.CONTROL: 0.89}


def made_up(case: str, seed: int, **changes: Any) -> Row:
    options = {"uplink": "int8", "downlink": "int8"} | wire.CASES[case]
    figure = GOOD.get(case, 0.915) + (0.005 if seed else -0.005)
    plain = dict.fromkeys(wire.FIGURES, figure)
    bits = {
        "uplink_bits": 3.0,
        "downlink_bits": 4.1,
        "uplink": options["uplink"],
        "downlink": options["downlink"],
    }
    return {"key": {"case": case, "seed": seed}, **plain, **bits, **changes}


def all_rows(**changes: Any) -> list[Row]:
    own = {wire.DEFAULT: changes}
    return [made_up(case, seed, **own.get(case, {})) for seed in range(2) for case in wire.CASES]


def missed(rows: list[Row]) -> list[str]:
    return [target.name for target in wire.targets(rows) if not target.is_met]


def test_nine_times_fewer_bytes_both_ways_at_no_loss_beyond_the_spread_meets_all_targets() -> None:
    assert missed(all_rows()) == []
    assert wire.summary(all_rows())[wire.DEFAULT]["below_fp32"] == pytest.approx(64 / 7.1)


@pytest.mark.parametrize(
    ("changes", "words"), [({"downlink_bits": 8.1}, "times below"), ({"auc": 0.90}, "loss of auc")]
)
def test_more_bytes_or_less_accuracy_misses(changes: Row, words: str) -> None:
    (name,) = missed(all_rows(**changes))
    assert words in name


def test_a_task_that_noise_does_not_hurt_misses() -> None:
    easy = [row | dict.fromkeys(wire.FIGURES, 0.92) for row in all_rows()]
    assert missed(easy) == ["the control's loss, so that the task can tell"]


def test_one_seed_has_no_spread_to_judge_by() -> None:
    rows = [row for row in all_rows() if row["key"]["seed"] == 0]
    assert [target.name for target in wire.targets(rows)] == [
        "the default, times below fp32 in both directions"
    ]


def test_the_chart_shows_every_case_and_is_the_same_each_time(tmp_path: Path) -> None:
    table = wire.summary(all_rows())
    first = write_chart(tmp_path / "a.svg", table).read_text()
    assert first == write_chart(tmp_path / "b.svg", table).read_text()
    assert [case for case in wire.CASES if not re.search(re.escape(case), first)] == []


def test_a_row_is_a_run_of_the_defaults_but_for_its_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Options] = []

    def remembered(options: Options, out: Path, trust: None) -> Any:
        asked.append(options)
        return prepare(options, out, trust)

    monkeypatch.setattr(wire, "prepare", remembered)
    data = "phantom:train=60,val=30,test=40"
    row = wire.measure({"case": "coded2 + diff2", "dataset": data, "rounds": 2, "seed": 7})
    assert asked == [Options(dataset=data, rounds=2, seed=7, uplink="coded2", downlink="diff2")]
    assert row["weights"] == 62_178
    assert 2.0 < row["uplink_bits"] < 2.15
    assert (8.0 + 2.0) / 2 < row["downlink_bits"] < (8.2 + 2.2) / 2  # the first model in 8 bits
    assert row["largest_epsilon"] <= 3.0
