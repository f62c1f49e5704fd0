"""How a command tells of an error: lines on stderr and an exit status, never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

FAILED = 1
MISUSED = 2


class CommandError(Exception):
    """The message is for the person who gave the command."""


def fail(message: str, status: int = FAILED) -> NoReturn:
    """Prints each line of the message and ends the command."""
    for line in message.splitlines() or [""]:
        typer.echo(f"tiller: {line}", err=True)
    raise typer.Exit(status)


@contextmanager
def reporting(*kinds: type[Exception], status: int = FAILED) -> Iterator[None]:
    """Inside the block, an error of these kinds, or a CommandError, ends the command with its message."""
    told: tuple[type[Exception], ...] = (CommandError, *kinds)
    try:
        yield
    except told as error:
        fail(str(error), status)
