"""`fedward hospital`: what a hospital asks of its own state folder."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedward.client.budget import Budget
from fedward.client.budget_report import heading, plot, summary, tables
from fedward.client.registry import Registry
from fedward.common.errors import LedgerRefused
from fedward.common.files import config_folder

BUDGET_FOLDER = "budget"  # of a hospital's state folder

# Without typer's own tracebacks, which show local variables.
app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="A hospital's own side of a study."
)


@app.callback()
def hospital() -> None:
    """A hospital's own side of a study."""


@app.command()
def budget(
    state: Annotated[Path | None, typer.Option(help="The hospital's state folder.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Show this data set only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw epsilon over time (PNG).")] = None,
) -> None:
    """Show what is spent, planned and left of each data set's privacy budget, by study and mechanism."""
    chosen = _budgets(state or config_folder() / "hospital", dataset)
    found = [summary(one) for one in chosen]
    if plot_file:
        plot(chosen, plot_file)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "datasets": found}, indent=2))
    else:
        _print(found)


def _budgets(state: Path, dataset: str | None) -> list[Budget]:
    folder = state / BUDGET_FOLDER
    if not folder.is_dir():
        raise LedgerRefused(f"{state} holds no privacy budgets: name a hospital's state folder with --state.")
    registry = Registry(folder)
    return [registry.budget(dataset)] if dataset else list(registry.budgets())


def _print(found: list[dict[str, Any]]) -> None:
    console = Console()
    if not found:
        console.print("No data set has been imported.")
    for one in found:
        console.print(heading(one), *tables(one), sep="\n")
        if one["suspended"]:
            console.print("Suspended: the ledger is an older copy; enter again what was spent since.")
