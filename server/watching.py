"""`fedward coordinator status --watch`: a coordinator's studies on the terminal, as they go on."""

import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedward.common.instants import utc_now
from fedward.common.printing import printable, unmistakable
from fedward.common.supervision import read_processes
from fedward.server.following import Followed, FollowedOrders

_BAR = 30  # columns
_MOST_SITES, _MOST_REFUSALS = 12, 4  # lines; the sites that need a look come first
_SECONDS = 1.0
_UNITS = ("B", "kB", "MB", "GB", "TB")


def study_view(state: str, of: Followed, now: datetime) -> RenderableType:
    """A study: its rounds, the open round's replies, epsilon, bytes, its sites, and who was lost and why."""
    parts: list[RenderableType] = [_bars(of), _figures(of), _sites(of, now)]
    lost = of.last_lost[:_MOST_REFUSALS]
    parts += [Text(_said(one), style="yellow") for one in lost]
    if len(of.last_lost) > len(lost):
        parts.append(Text(f"and {len(of.last_lost) - len(lost)} more", style="yellow"))
    title = f"[bold]{_text(of.study.name)}[/] {state}, {of.phase}"
    return Panel(Group(*parts), title=title, title_align="left")


def state_view(state: Path, orders: FollowedOrders, now: datetime) -> RenderableType:
    """The coordinator's processes, and each of its studies."""
    found = read_processes(state)
    if found is None:
        up = Text("The coordinator is down: `fedward coordinator up`.", style="red")
    else:
        shown = (f"{name} ({child['restarts']} restarts)" for name, child in found["children"].items())
        up = Text("The coordinator is up: " + ", ".join(shown), style="dim")
    studies = [study_view(report.state, of, now) for report, of in orders.look()]
    return Group(up, *(studies or [Text("No study was ordered yet: `fedward coordinator start STUDY`.")]))


def watch(state: Path, console: Console, until: threading.Event) -> None:
    """Show the state, again and again, until the event is set.

    Raises:
        CheckpointRefused: an order is damaged.
    """
    orders = FollowedOrders(state)
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        live.update(state_view(state, orders, utc_now()), refresh=True)
        while not until.wait(_SECONDS):
            live.update(state_view(state, orders, utc_now()), refresh=True)


def _bars(of: Followed) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    sites = len(of.study.hospitals)
    answered = f"of round {of.open_round}" if of.open_round else "answered the last round"
    for what, done, of_all, note in (
        ("rounds", of.closed, of.study.rounds, _lengths(of)),
        ("sites", len(of.answered), sites, answered),
    ):
        table.add_row(what, ProgressBar(of_all, done, width=_BAR), f"{done:,} of {of_all:,}", note)
    return table


def _lengths(of: Followed) -> str:
    if of.round_seconds is None:
        return ""
    left = (of.study.rounds - of.closed) * of.seconds / max(1, of.closed)
    return f"last {_duration(of.round_seconds)}, about {_duration(left)} left"


def _figures(of: Followed) -> RenderableType:
    planned = of.study.target_epsilon
    spent = f"{of.epsilon:.3f}" if of.epsilon is not None else "unknown" if of.closed else "0"
    cost = "no privacy" if planned is None else f"epsilon {spent} of {planned:g} a site"
    lost = sum(of.lost.values())
    return Text(
        f"{cost} | in {_size(of.received)}, out {_size(of.sent)} | {of.replies:,} replies, {lost:,} lost"
    )


def _sites(of: Followed, now: datetime) -> RenderableType:
    table = Table("site", "this round", "last seen", box=None, padding=(0, 2, 0, 0), header_style="dim")
    names = sorted((one.name for one in of.study.hospitals), key=lambda name: (_rank(of, name), name))
    for name in names[:_MOST_SITES]:
        seen = of.last_seen.get(name)
        ago = "never" if seen is None else f"{_duration((now - seen).total_seconds())} ago"
        table.add_row(_text(name), _standing(of, name), ago)
    if len(names) > _MOST_SITES:
        table.add_row(f"and {len(names) - _MOST_SITES:,} more", "", "")
    return table


def _standing(of: Followed, name: str) -> str:
    words = ("[red]away[/]", "[yellow]asked[/]", "[green]answered[/]")
    return words[_rank(of, name)]


def _rank(of: Followed, name: str) -> int:
    return 2 if name in of.answered else int(name in of.online)


def _said(lost: Mapping[str, Any]) -> str:
    reason = printable(f"{_field(lost, 'name')}: {_field(lost, 'message')}")
    return f"{unmistakable(_field(lost, 'hospital'))}: {reason}"


def _field(lost: Mapping[str, Any], name: str) -> str:
    return str(lost.get(name, "")) if isinstance(lost, Mapping) else ""


def _text(name: str) -> str:
    return escape(printable(unmistakable(name)))


def _size(size: float) -> str:
    unit = 0
    while size >= 999.95 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} B"


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
