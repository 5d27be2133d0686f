"""`fedward hospital`: what a hospital asks of its own state folder."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedward.client import egress_report, study_commands
from fedward.client.anchors import Anchors
from fedward.client.budget import Budget
from fedward.client.budget_report import heading, plot, released, released_said, summary, tables
from fedward.client.egress_log import LOG, LOG_HEAD
from fedward.client.egress_sums import summary as left_summary
from fedward.client.egress_words import explanation
from fedward.client.enrolment_commands import accept, join, renew
from fedward.client.fetching import fetch
from fedward.client.import_command import init
from fedward.client.registry import Registry
from fedward.client.replicas import Replicas
from fedward.client.running import doctor, status, up
from fedward.client.state_folder import BUDGETS, REPLICAS
from fedward.common.bundle import read_bundle
from fedward.common.chain import Head
from fedward.common.errors import BundleRefused, LedgerRefused, SettingRefused, UnknownName
from fedward.common.files import config_folder
from fedward.common.ledger import Ledger
from fedward.common.mechanisms import Mechanism
from fedward.common.printing import unmistakable
from fedward.common.trust import load_trust
from fedward.common.watching_commands import logs_of, unit_of

_SHOWN = 3  # messages, where --last does not say

# Without typer's own tracebacks, which show local variables.
app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="A hospital's own side of a study."
)


study_commands.add_to(app)


@app.callback()
def hospital() -> None:
    """A hospital's own side of a study."""


for command in (init, join, accept, renew, up, status, doctor, fetch):
    app.command()(command)
app.command("logs")(logs_of("hospital"))
app.command("unit")(unit_of("hospital"))

State = Annotated[Path | None, typer.Option(help="The hospital's state folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def budget(
    state: State = None,
    dataset: Annotated[str | None, typer.Option(help="Show this data set only.")] = None,
    as_json: AsJson = False,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw epsilon over time (PNG).")] = None,
) -> None:
    """Show what is spent, planned and left of each data set's privacy budget, by study and mechanism."""
    chosen = _budgets(_folder(state), dataset)
    found = [summary(one) for one in chosen]
    if plot_file:
        plot(chosen, plot_file)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "datasets": found}, indent=2))
    else:
        _print(found)


@app.command()
def release(
    study: Annotated[str, typer.Argument(help="The study's name, as `fedward hospital budget` shows it.")],
    state: State = None,
    dataset: Annotated[str | None, typer.Option(help="In this data set's budget only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give up what is reserved for STUDY, which will not finish: its later rounds are refused for good."""
    folder = _folder(state)
    chosen = _budgets(folder, dataset)
    name = _reserved_name(chosen, study)
    found = [released(one, name) for one in chosen if name in one.state.reserved]
    Replicas(folder / REPLICAS).forget(name)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "study": name, "datasets": found}))
    else:
        for one in found:
            typer.echo(released_said(one))
        typer.echo(
            f"Later rounds of study {unmistakable(name)} are refused; what it was charged stays spent."
        )


@app.command()
def egress(
    state: State = None,
    last: Annotated[int | None, typer.Option(min=1, help="Show so many messages; with --json all.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say it in plain words.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what left this hospital: each message and field, when, why, its class, digest and charge."""
    folder = _folder(state)
    budgets = list(_registry(folder).budgets()) if (folder / BUDGETS).is_dir() else []
    log = _log_of(folder, budgets)
    found = left_summary(log, budgets, last if as_json else last or _SHOWN)
    if explain:
        found["explanation"] = explanation(found)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif explain:
        Console().print("\n\n".join(found["explanation"]), highlight=False)
    else:
        Console().print(*egress_report.tables(found), sep="\n", highlight=False)


@app.command()
def check(
    release: Annotated[Path, typer.Argument(help="A release of a study that this hospital took part in.")],
    state: State = None,
    trust: Annotated[Path | None, typer.Option(help="The study's trust file; by default your own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold the privacy budget's ledger against what RELEASE says of it: an older copy stops all work."""
    anchors = Anchors(_registry(_folder(state)))
    head = anchors.require(_own_anchor(anchors, release, trust))
    if as_json:
        typer.echo(json.dumps({"schema": 1, "contained": True, **_head_json(head)}))
    else:
        typer.echo(
            f"The ledger holds entry {head.seq} ({head.hash[:12]}), which the release names: "
            "it is no older copy."
        )


@app.command()
def recover(
    anchor: Annotated[str, typer.Option(help="The anchor whose entry is missing, from a reply or release.")],
    sigma: Annotated[list[float], typer.Option(help="Noise multiplier of what was spent since.")],
    rate: Annotated[list[float], typer.Option(help="Its sample rate.")],
    steps: Annotated[list[int], typer.Option(help="Its steps.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Enter again what an older copy of the ledger lacks; name each kind of steps by its own three."""
    if not len(sigma) == len(rate) == len(steps):
        raise SettingRefused("Name --sigma, --rate and --steps equally often, once for each kind of steps.")
    lost = [Mechanism(*values) for values in zip(sigma, rate, steps, strict=True)]
    anchors = Anchors(_registry(_folder(state)))
    recovered = anchors.budget(anchor)
    recovered.recover(head := anchors.opened(anchor)[1], lost)
    spent = recovered.spent()
    if as_json:
        typer.echo(json.dumps({"schema": 1, **_head_json(head), "spent": spent}))
    else:
        typer.echo(
            f"What was spent up to entry {head.seq} is entered again: epsilon {spent:.3f} of "
            f"{recovered.terms.total_epsilon:g} is spent."
        )


def _own_anchor(anchors: Anchors, release: Path, trust: Path | None) -> str:
    """The one anchor of a verified release that this hospital made."""
    found = read_bundle(release, load_trust(trust)).manifest["provenance"].get("anchors")
    own = [
        str(token) for token in (found.values() if isinstance(found, dict) else ()) if anchors.is_own(token)
    ]
    if not own:
        raise BundleRefused(
            "The release names no entry of this hospital's ledger: name a release of a study that this "
            "hospital took part in with privacy, and the hospital's own state folder with --state."
        )
    return own[0]


def _reserved_name(budgets: list[Budget], shown: str) -> str:
    """The name of the study that `shown` stands for, as it is printed or else as it is."""
    names = sorted({name for budget in budgets for name in budget.state.reserved})
    found = {**{name: name for name in names}, **{unmistakable(name): name for name in names}}
    if shown in found:
        return found[shown]
    listed = ", ".join(map(unmistakable, names)) or "none"
    raise UnknownName(f"Nothing is reserved for a study {shown!r}; studies with a reservation: {listed}.")


def _head_json(head: Head) -> dict[str, Any]:
    return {"entry": head.seq, "hash": head.hash}


def _log_of(state: Path, budgets: list[Budget]) -> Ledger:
    if (state / LOG).exists():
        return Ledger.open(state / LOG)
    if any(LOG_HEAD in charge.extra for budget in budgets for charge in budget.state.charges.values()):
        raise LedgerRefused(
            f"{state / LOG} is gone: the privacy budget's ledger notes that it had entries. Put back its "
            "newest copy."
        )
    raise LedgerRefused(
        f"{state} holds no record of what left: nothing was sent from it, or it is no state folder; name "
        "a hospital's with --state."
    )


def _folder(state: Path | None) -> Path:
    return state or config_folder() / "hospital"


def _registry(state: Path) -> Registry:
    folder = state / BUDGETS
    if not folder.is_dir():
        raise LedgerRefused(f"{state} holds no privacy budgets: name a hospital's state folder with --state.")
    return Registry(folder)


def _budgets(state: Path, dataset: str | None) -> list[Budget]:
    registry = _registry(state)
    return [registry.budget(dataset)] if dataset else list(registry.budgets())


def _print(found: list[dict[str, Any]]) -> None:
    console = Console()
    if not found:
        console.print("No data set has been imported.")
    for one in found:
        console.print(heading(one), *tables(one), sep="\n")
        if one["suspended"]:
            console.print("Suspended: the ledger is an older copy; enter again what was spent since.")
