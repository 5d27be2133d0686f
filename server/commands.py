"""`fedward coordinator`: the coordinator's own side."""

import typer

from fedward.server.study_commands import resume, start, status, stop, up

# Without typer's own tracebacks, which show local variables.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="The coordinator's own side.")
for command in (up, start, resume, stop, status):
    app.command()(command)


@app.callback()
def coordinator() -> None:
    """The coordinator's own side."""
