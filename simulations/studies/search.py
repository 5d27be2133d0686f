"""The student of the best AUC under a budget of bytes and milliseconds, searched by optuna on public data.

    python -m fedward.simulations.studies.search --json --most-bytes 40000 --most-ms 0.2 [--dataset phantom]
        [--network NAME ...] [--trials 20] [--steps 200] [--seed 0] [--out FOLDER]

The data set is taken for public, whatever it is: a hospital's records must never be named here, since the
shape of what is found follows from them at no charge. Students learn from the training split and half A of
the validation split, without privacy, and are judged by half B; the test split is not read.

A trial is a network, which of a transformer is its depth; the channels of each width of a convolutional
one; and bits: ternary, int8, or mixed. A mixed student is an int8 one for half of the steps; half A then says
which weights get 2, 4 or 8 bits within the budget, and it is tuned with them for the other half. Size and
speed are those of the release as it is shipped, and are measured before anything is trained: a trial over the
budget is not trained, and the sampler hears by how much it is over. Trained weights pack otherwise, so the
size is measured again after training, and that one counts.

What is proposed follows from the seed and the trials before, by TPE (Bergstra et al. 2011) with constraints,
as optuna has it. So a search that was cut off asks anew, is answered from its rows as far as they go, and
goes on as if it had never stopped. Times are the machine's: with others a search may propose otherwise.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import optuna
import typer
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from fedward.common.convolutions import STEP, WIDTHS
from fedward.common.errors import SettingRefused
from fedward.simulations.studies.rows import Row, Target, conclude, measured, run_study
from fedward.simulations.studies.search_trials import BITS, Budget, measure_trial, public_records

NETWORKS = ("cnn", "depthwise", "mobile", "vit", "vit-s")
COSTS = ("bytes", "multiply_adds", "milliseconds")
_COLUMNS = ("student", "widths", "bits", "auc", "accuracy", *COSTS)
_FRACTIONS = ("auc", "accuracy", "milliseconds")
_RANDOM = 8  # trials before the sampler has an opinion

Answer = Callable[[Row], Row]  # the row of a proposal: of `network`, `bits` and `widths`


def searched(networks: Sequence[str], trials: int, seed: int, budget: Budget, answer: Answer) -> list[Row]:
    """The rows of so many trials, each proposed by what the ones before it gave."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM)
    study, rows = optuna.create_study(direction="maximize", sampler=sampler), []
    for _ in range(trials):
        trial = study.ask()
        row = answer(_proposed(trial, networks))
        for name, excess in budget.excess(row).items():
            trial.set_constraint(name, excess)
        study.tell(trial, row.get("auc"), TrialState.COMPLETE if "auc" in row else TrialState.PRUNED)
        rows.append(row)
    return rows


def _proposed(trial: optuna.Trial, networks: Sequence[str]) -> Row:
    network = trial.suggest_categorical("network", networks)
    bits = trial.suggest_categorical("bits", BITS)
    widths = [
        trial.suggest_int(f"{network} {place}", STEP, own, step=STEP)
        for place, own in enumerate(WIDTHS.get(network, ()))
    ]
    return {"network": network, "bits": bits, "widths": widths or None}


def within_reach(networks: Sequence[str], budget: Budget, answer: Answer) -> list[str]:
    """The networks whose smallest student, untrained, is within the budget: only they are searched.

    Raises:
        SettingRefused: none.
    """
    rows = {network: answer(_smallest(network)) for network in networks}
    if found := [network for network, row in rows.items() if budget.holds(row)]:
        return found
    takes = "; ".join(
        f"{row['student']} {row['bytes']:,} bytes and {row['milliseconds']:.3g} ms" for row in rows.values()
    )
    raise SettingRefused(f"No student is within {budget}; the smallest take: {takes}. Allow more.")


def _smallest(network: str) -> Row:
    widths = [STEP] * len(WIDTHS.get(network, ()))
    return {"network": network, "bits": "ternary", "widths": widths or None, "steps": 0}


def pareto(rows: Sequence[Row], budget: Budget) -> list[Row]:
    """A line each student within the budget that no other one beats or equals in AUC and in all costs, the
    best AUC first.

    Raises:
        SettingRefused: no trained student is within the budget.
    """
    lines = [_line(row) for row in rows if "auc" in row and budget.holds(row)]
    if not lines:
        raise SettingRefused(
            f"None of {len(rows)} trials is within {budget}: allow more trials (those made are kept), more "
            "bytes or more milliseconds."
        )
    lines.sort(key=lambda line: (-line["auc"], *(line[cost] for cost in COSTS)))
    # A line comes behind all that beat it or equal it.
    return [line for place, line in enumerate(lines) if not any(_beats(o, line) for o in lines[:place])]


def _line(row: Row) -> Row:
    return {name: row["key"]["widths"] if name == "widths" else row[name] for name in _COLUMNS}


def _beats(one: Row, other: Row) -> bool:
    return one["auc"] >= other["auc"] and all(one[cost] <= other[cost] for cost in COSTS)


def targets(best: Row, budget: Budget) -> list[Target]:
    """The best student's costs beside the budget."""
    return [
        Target(f"bytes of the best, {best['student']}", best["bytes"], budget.most_bytes, False),
        Target(f"milliseconds of the best, {best['student']}", best["milliseconds"], budget.most_ms, False),
    ]


def _shown(lines: Sequence[Row]) -> Table:
    table = Table(*_COLUMNS)
    for line in lines:
        table.add_row(
            *(f"{line[name]:.4g}" if name in _FRACTIONS else str(line[name] or "-") for name in _COLUMNS)
        )
    return table


def main(
    most_bytes: Annotated[int, typer.Option(min=1, help="Of the release's model file.")],
    most_ms: Annotated[float, typer.Option(help="Of this machine's thread CPU time for one image.")],
    dataset: Annotated[str, typer.Option(help="A PUBLIC data set; never a hospital's records.")] = "phantom",
    network: Annotated[list[str] | None, typer.Option(help="Networks; several where none is named.")] = None,
    trials: Annotated[int, typer.Option(min=1)] = 20,
    steps: Annotated[int, typer.Option(min=2, help="Of training, a trial.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    out: Annotated[Path, typer.Option(help="Where raw rows are kept.")] = Path("runs/studies/search"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search, or finish doing so."""
    budget, public = Budget(most_bytes, most_ms), public_records(dataset)
    say = Console(stderr=True).print
    common = {"dataset": dataset, "steps": steps, "seed": seed, "most_bytes": most_bytes, "most_ms": most_ms}

    def answer(proposal: Row) -> Row:
        return measured(out, [{**common, **proposal}], lambda key: measure_trial(key, public, budget), say)[0]

    names = within_reach(list(dict.fromkeys(network or NETWORKS)), budget, answer)
    rows = searched(names, trials, seed, budget, answer)
    lines = pareto(rows, budget)
    if not as_json:
        Console().print(_shown(lines))
    found = {"networks": names, "best": lines[0], "pareto": lines}
    raise typer.Exit(conclude("search", rows, targets(lines[0], budget), as_json, **found))


if __name__ == "__main__":
    run_study(main)
