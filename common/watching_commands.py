"""`logs` and `unit`, which both sides have."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedward.common.files import config_folder
from fedward.common.log_files import chosen, follow, last_lines
from fedward.common.printing import printable
from fedward.common.units import unit

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Flower colours its logs, also where nobody sees it
_State = Annotated[Path | None, typer.Option(help="The state folder.")]


def logs_of(side: str) -> Callable[..., None]:
    """The command `fedward SIDE logs`."""

    def logs(
        process: Annotated[list[str] | None, typer.Argument(help="Whose; by default everybody's.")] = None,
        state: _State = None,
        last: Annotated[int, typer.Option(min=0, help="So many lines of each.")] = 20,
        is_followed: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
    ) -> None:
        """Show the last lines of the processes' logs; no patient data stands in them."""
        paths = chosen(state or config_folder() / side, process or [])
        for path in paths:
            for line in last_lines(path, last):
                _say(path.stem, line)
        if is_followed:
            follow(paths, _say)

    return logs


def unit_of(side: str) -> Callable[..., None]:
    """The command `fedward SIDE unit`."""

    def unit_command(
        state: _State = None,
        user: Annotated[str, typer.Option(help="As whom it runs.")] = "fedward",
    ) -> None:
        """Print a systemd unit that runs `up` and may touch nothing but the state folder."""
        typer.echo(unit(side, state or config_folder() / side, user), nl=False)

    return unit_command


def _say(name: str, line: str) -> None:
    typer.echo(printable(f"{name}: {_COLOUR.sub('', line)}"))
