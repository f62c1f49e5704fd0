"""What the commands of `tiller concept` share: creating a concept with a progress bar, and files."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import httpx
import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from app.commands.client import Json, content_of
from app.commands.completion import complete_concept, complete_model
from app.commands.errors import CommandError

ROUTE = "/steering_concepts"
_KEYS = {"name", "description", "examples"}
_POLL_SECONDS = 0.5
_LINE_SECONDS = 5.0

ConceptId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Id of the concept, with or without `_worker/`.",
        autocompletion=complete_concept,
    ),
]

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="One of the server's models. Default: all of them, or the first one that fits.",
        autocompletion=complete_model,
    ),
]


def present(**values: str | None) -> dict[str, str]:
    """Those that are not None, as a query or a part of a body."""
    return {key: value for key, value in values.items() if value is not None}


def path_of(concept: str) -> str:
    return f"{ROUTE}/{quote(concept, safe='')}"


async def create(
    client: httpx.AsyncClient, send: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]], name: str
) -> Json:
    """Sends a request that creates a concept, and shows the progress meanwhile.

    `send`: without a time limit, because the training may take any time. `name`: in the concept's future id.
    """
    async with client:
        creating = asyncio.ensure_future(send(client))
        try:
            with _progress_bar() as show:
                while not creating.done():
                    await asyncio.wait({creating}, timeout=_POLL_SECONDS)
                    seen = await client.get(path_of(name))
                    if seen.is_success:
                        show(seen.json())
        finally:  # If the progress cannot be read, the error of the creation is not reported as well.
            creating.cancel()
            await asyncio.gather(creating, return_exceptions=True)
    return content_of(creating.result())


@contextmanager
def _progress_bar() -> Iterator[Callable[[Json], None]]:
    """Yields a function that shows a concept's state: in a bar on a terminal, or else in a line now and then.

    The bar disappears at the end.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("sending", total=1.0)
        yield lambda card: progress.update(bar, description=card["state"], completed=card["progress"])


def _line_printer() -> Callable[[Json], None]:
    last = time.monotonic()

    def show(card: Json) -> None:
        nonlocal last
        if time.monotonic() - last > _LINE_SECONDS:
            last = time.monotonic()
            typer.echo(f"{card['id']}: {describe_state(card)}", err=True)

    return show


def describe_state(card: Json) -> str:
    """The state of a concept in the server's list, with the progress of a training."""
    is_going_on = card["state"] in ("training", "measuring")
    return f"{card['state']} {card['progress']:.0%}" if is_going_on else str(card["state"])


def read_bytes(file: Path) -> bytes:
    """Raises CommandError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise CommandError(f"{file}: cannot be read: {error.strerror}") from None


def write_bytes(file: Path, content: bytes) -> None:
    """Raises CommandError."""
    try:
        file.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{file}: cannot be written: {error.strerror}") from None


def read_concept(file: Path) -> Json:
    """Reads a concept that can be sent as JSON. The server checks the rest. Raises CommandError."""
    try:
        content = yaml.safe_load(read_bytes(file).decode())  # reads JSON as well
        if not isinstance(content, dict) or not content.keys() <= _KEYS or "examples" not in content:
            raise CommandError(f"{file}: must have examples, may have name and description, and no other key")
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CommandError(f"{file}: is not valid YAML or JSON: {reason}") from None
    return content
