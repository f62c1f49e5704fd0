"""Reports the errors of commands: as lines on stderr and an exit status, never as a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from app.settings.model import check_address

FAILED = 1
"""Exit status: the command is correct, but it failed."""
MISUSED = 2
"""Exit status: the command or its configuration is not correct."""


class CommandError(Exception):
    """A command cannot go on. The user of the command reads the message."""


class UsageError(CommandError):
    """The command line has a mistake. Ends the command with the exit status MISUSED."""


def fail(message: str, status: int = FAILED) -> NoReturn:
    """Prints the message to stderr and ends the command with this exit status."""
    for line in message.splitlines() or [""]:
        typer.echo(f"tiller: {line}", err=True)
    raise typer.Exit(status)


@contextmanager
def exit_on_errors(*kinds: type[Exception], status: int = FAILED) -> Iterator[None]:
    """Ends the command with the error's message if the block raises one of these errors or CommandError."""
    reported: tuple[type[Exception], ...] = (CommandError, *kinds)
    try:
        yield
    except reported as error:
        fail(str(error), MISUSED if isinstance(error, UsageError) else status)


def check_listening(address: str) -> None:
    """Raises CommandError if it is no address for a worker or a registry."""
    try:
        check_address(address)
    except ValueError as error:
        raise CommandError(f"{address}: {error}") from None
