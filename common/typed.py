"""What a person typed, beside what a command takes by default."""

import click


def typed_names() -> set[str]:
    """Names of the parameters of the command that runs which stood on the command line."""
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    return {name for name in context.params if context.get_parameter_source(name) == source}
