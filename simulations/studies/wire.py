"""Bits a weight on the wire, up and down, against accuracy: pairs of codecs with the same seeds.

    python -m fedward.simulations.studies.wire --json [--dataset D] [--seeds 5] [--rounds 60] [--out FOLDER]

The settings are the defaults of `fedward simulate` but for the codecs. Bits are of whole messages as both
ends count them: payload, headers, ledger anchors; and of all rounds, the first among them, whose model
travels in full. One case more, fp32 at epsilon 1, shows that the task is
hard enough for noise to hurt: rounding adds noise, and a task that does not mind noise says nothing of bits.
``OUT/wire.svg`` is the chart. The test split is read once a run, at its end.
"""

import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer
from rich.console import Console

from fedward.common.models import build_student, parameter_count
from fedward.server.study_folder import StudyFolder
from fedward.simulations.options import Options
from fedward.simulations.prepare import prepare
from fedward.simulations.simulate import run
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study
from fedward.simulations.studies.wire_chart import write_chart

PLAIN, DEFAULT, CONTROL = "fp32", "the default", "fp32, epsilon 1"
# name -> what differs from the defaults
CASES: dict[str, dict[str, Any]] = {
    PLAIN: {"uplink": "fp32", "downlink": "fp32"},
    "int8": {"uplink": "int8", "downlink": "int8"},
    "coded4 + diff4": {"uplink": "coded4", "downlink": "diff4"},
    DEFAULT: {},
    "coded2 + diff2": {"uplink": "coded2", "downlink": "diff2"},
    CONTROL: {"uplink": "fp32", "downlink": "fp32", "epsilon": 1.0},
}
FIGURES = ("auc", "accuracy", "balanced_accuracy")
_WEIGHT_BITS = 32
_BELOW_FP32 = 9.0


def measure(key: Row) -> Row:
    """One run of the key's codecs, data set and seed."""
    values = CASES[key["case"]]
    options = Options(dataset=key["dataset"], rounds=key["rounds"], seed=key["seed"], **values)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        metrics = run(prepare(options, folder, None), Console(stderr=True)).metrics
        spec = StudyFolder(folder).study().local.spec
    rounds, weights = metrics["rounds"], parameter_count(build_student(spec))
    messages = len(rounds) * len(metrics["hospitals"])
    return {
        **{figure: metrics["release"][figure] for figure in FIGURES},
        "weights": weights,
        "uplink": options.codecs[0],
        "downlink": options.codecs[1],
        "uplink_bits": 8 * sum(row["uplink_bytes"] for row in rounds) / messages / weights,
        "downlink_bits": 8 * sum(row["downlink_bytes"] for row in rounds) / messages / weights,
        "largest_epsilon": max(site["epsilon"] for site in metrics["hospitals"]),
        "digest": metrics["release"]["digest"],
    }


def _codecs(case: str) -> list[str]:
    """In the key, so that rows of an earlier default are none of today's."""
    return list(Options(**CASES[case]).codecs)


def summary(rows: list[Row]) -> dict[str, Row]:
    """By case: means over seeds, standard deviations of the figures, and how far both ways are below fp32."""
    table: dict[str, Row] = {}
    for case in CASES:
        own = [row for row in rows if row["key"]["case"] == case]
        names = (*FIGURES, "uplink_bits", "downlink_bits")
        found: Row = {name: mean(row[name] for row in own) for name in names}
        found |= {f"{name}_sd": stdev([row[name] for row in own]) for name in FIGURES if len(own) > 1}
        found["below_fp32"] = 2 * _WEIGHT_BITS / (found["uplink_bits"] + found["downlink_bits"])
        table[case] = {"uplink": own[0]["uplink"], "downlink": own[0]["downlink"], **found}
    return table


def targets(rows: list[Row]) -> list[Target]:
    """The default's bytes; its loss, and the control's, in deviations of fp32's seeds."""
    table = summary(rows)
    below = Target(
        "the default, times below fp32 in both directions", table[DEFAULT]["below_fp32"], _BELOW_FP32, True
    )
    if f"{FIGURES[0]}_sd" not in table[PLAIN]:
        return [below]  # one seed has no spread
    losses = [
        Target(
            f"the default's loss of {name}, in deviations of the seeds",
            _loss(table, DEFAULT, name),
            1.0,
            False,
        )
        for name in FIGURES
    ]
    control = max(_loss(table, CONTROL, name) for name in FIGURES)
    return [below, *losses, Target("the control's loss, so that the task can tell", control, 2.0, True)]


def _loss(table: dict[str, Row], case: str, name: str) -> float:
    spread = max(table[PLAIN][f"{name}_sd"], 1e-6)  # of a task too easy to differ between seeds
    return float((table[PLAIN][name] - table[case][name]) / spread)


def main(
    dataset: Annotated[str, typer.Option(help="As `fedward simulate` takes it.")] = "pneumoniamnist",
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    rounds: Annotated[int, typer.Option(min=1)] = Options().rounds,
    out: Annotated[Path, typer.Option(help="Where raw rows and the chart are kept.")] = Path(
        "runs/studies/wire"
    ),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure, or finish measuring, every codec and seed."""
    keys = [
        {"case": case, "codecs": _codecs(case), "dataset": dataset, "rounds": rounds, "seed": seed}
        for seed in range(seeds)
        for case in CASES
    ]
    rows = measured(out, keys, measure, Console(stderr=True).print)
    chart = write_chart(out / "wire.svg", summary(rows))
    code = conclude("wire", rows, targets(rows), as_json, summary=summary(rows), chart=str(chart))
    raise typer.Exit(code)


if __name__ == "__main__":
    run_study(main)
