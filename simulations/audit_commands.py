"""`fedward audit`: attacks on this very installation's privacy code."""

import json
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedward.simulations.audit_probes import Row, audit_privacy, rates

app = typer.Typer(add_completion=False, help="Attack this installation's own privacy code.")


@app.callback()
def _audit() -> None:
    """Attack this installation's own privacy code."""


@app.command()
def privacy(
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Repeat with so many seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="The first seed.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Four probes through the real training step, and every planted fault caught, or exit code 1."""
    console = Console(stderr=as_json)
    reports = [_one(number, console) for number in range(seed, seed + seeds)]
    result = reports[0] if seeds == 1 else _together(reports)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    elif seeds > 1:
        _print_rates(result["rates"], console)
    raise typer.Exit(0 if result["passed"] else 1)


def _one(seed: int, console: Console) -> Row:
    with console.status(f"Seed {seed}: four probes ...") as status:
        report = audit_privacy(seed, _telling(status.update, seed))
    console.print(_table(report))
    console.print(
        f"claimed epsilon {report['claimed_epsilon']:.2f}; proven at least "
        f"{_figure(report['lower_bound_binomial'], 'nothing')} (binomial bound, {report['confidence']:.0%}); "
        f"diagnostic {_figure(report['diagnostic_gaussian'], 'none')} (Gaussian fit); "
        f"{report['seconds']:.0f} s"
    )
    missed = [name for name, target in report["targets"].items() if not target["met"]]
    console.print(f"[red]Missed: {', '.join(missed)}[/red]" if missed else "[green]Passed.[/green]")
    return report


def _telling(update: Callable[[str], None], seed: int) -> Callable[[Row], None]:
    return lambda row: update(f"Seed {seed}: {row['name']} done in {row['seconds']:.0f} s ...")


def _table(report: Row) -> Table:
    table = Table(title=f"Privacy audit, seed {report['seed']}")
    for column in ("probe", "code that runs", "verdict"):
        table.add_column(column, overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("allowed", justify="right")
    for row in report["probes"]:
        table.add_row(row["name"], "as it is", _right(row["right_code"]))
        for fault in row["faults"]:
            table.add_row("", fault["name"], *_caught(fault))
        table.add_section()
    return table


def _right(right: Row) -> str:
    failed = [check["check"] for check in right["checks"] if not check["passed"]]
    return f"[red]FAILS: {'; '.join(failed)}[/red]" if failed else f"passes {len(right['checks'])} checks"


def _caught(fault: Row) -> tuple[str, str, str]:
    """Verdict, what was measured, what is allowed."""
    if fault["caught_by"] is None:
        return "[red]ESCAPES[/red]", "", ""
    verdict = f"caught by {fault['caught_by'].partition(': ')[2]}"
    last = fault["figures"][-1] if fault["figures"] else {"passed": True}
    if last["passed"]:  # the shipped code refused to run
        return verdict, "", ""
    return verdict, _figure(last["value"], "not finite"), _allowed(last)


def _allowed(check: Row) -> str:
    return f"{_figure(check['low'], '')} to {_figure(check['high'], '')}".strip()


def _figure(value: float | None, absent: str) -> str:
    return absent if value is None else f"{value:.5g}"


def _together(reports: list[Row]) -> Row:
    return {
        "schema": 1,
        "rates": rates(reports),
        "passed": all(report["passed"] for report in reports),
        "reports": reports,
    }


def _print_rates(found: Row, console: Console) -> None:
    table = Table(title=f"{found['seeds']} seeds")
    table.add_column("what")
    table.add_column("wrong", justify="right")
    for name, count in found["false_alarms"].items():
        table.add_row(f"{name}: false alarm on the right code", str(count))
    for name, count in found["misses"].items():
        table.add_row(f"{name}: missed", str(count))
    console.print(table)
