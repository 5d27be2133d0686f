"""`fedward`: one command, whose parts are loaded only when they are asked for.

So `fedward edge` and `fedward bundle` start in milliseconds and run where torch and flwr are not
installed. Exit codes: 0, 1 for a refusal, 2 for wrong usage, 130 after Ctrl-C.
"""

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
import typer

from fedward.common.errors import Refusal
from fedward.common.printing import printable

_COMPLETION = ("install_completion", "show_completion")


@dataclass(frozen=True)
class _Part:
    target: str  # module:attribute, a typer.Typer or a function
    extra: str  # what must be installed for it
    help: str


_PARTS = {
    "simulate": _Part(
        "fedward.simulations.commands:app",
        "simulation",
        "Run a whole federation on this machine, up to a signed release and its report.",
    ),
    "coordinator": _Part(
        "fedward.server.commands:app",
        "coordinator",
        "Run studies across hospitals, say who is in the federation, and keep its keys.",
    ),
    "hospital": _Part("fedward.client.commands:app", "hospital", "A hospital's own side of a study."),
    "edge": _Part("fedward.client.edge.commands:app", "edge", "Run a signed release beside the scanner."),
    "bundle": _Part(
        "fedward.common.bundle_commands:app", "edge", "Inspect, verify and pack signed releases."
    ),
    "audit": _Part(
        "fedward.simulations.audit_commands:app",
        "simulation",
        "Attack this installation's own privacy code.",
    ),
}


class _Parts(click.Group):
    """The parts by name; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_PARTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        part = _PARTS.get(cmd_name)
        return None if part is None else _load(cmd_name, part)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, part.help) for name, part in _PARTS.items()])


class ExtraMissing(Refusal):
    """A part of fedward needs a package that is not installed."""


@click.command(cls=_Parts, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedward")
def fedward() -> None:
    """Federated learning for hospitals: private, quantised, signed, and run beside the scanner."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Run `fedward ARGUMENTS...` and return its exit code."""
    try:
        code = fedward.main(list(arguments), prog_name="fedward", standalone_mode=False)
    except Refusal as refusal:
        return _refuse(refusal.name, str(refusal), arguments)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:  # click's name for Ctrl-C
        click.echo("Stopped.", err=True)
        return 130
    return code if isinstance(code, int) else 0


def _load(name: str, part: _Part) -> click.Command:
    module, attribute = part.target.split(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "fedward":
            raise
        raise ExtraMissing(
            f"`fedward {name}` needs the package {package}: run `pip install 'fedward[{part.extra}]'`."
        ) from error
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False)
        found.command()(function)
    command = typer.main.get_command(found)
    command.name = name
    # Typer adds these two to every app; they would install completion for the part's name alone.
    command.params = [option for option in command.params if option.name not in _COMPLETION]
    return command


def _refuse(name: str, message: str, arguments: Sequence[str]) -> int:
    click.echo(printable(f"{name}: {message}"), err=True)
    if "--json" in arguments:
        click.echo(json.dumps({"error": name, "message": message}))
    return 1
