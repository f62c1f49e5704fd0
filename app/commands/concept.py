"""`tiller concept`: manages the steering concepts of a running server. Knows only its HTTP API."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import msgspec
import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from app.commands.errors import CommandError, exit_on_errors
from app.concepts.concept import Example, digest_of

_ROUTE = "/steering_concepts"
_LOCAL = "http://127.0.0.1:8000"
_KEYS = {"name", "description", "examples"}
_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 30.0

Url = Annotated[str, typer.Option(help="URL of the server.")]
Token = Annotated[str | None, typer.Option(envvar="TILLER_TOKEN", help="Access token for the server.")]
ConceptId = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the concept, with or without `_worker/`.")
]
ConceptFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="YAML or JSON file with examples, and optionally name and description."
    ),
]
Json = dict[str, Any]


def concept_commands() -> typer.Typer:
    commands = typer.Typer(
        no_args_is_help=True, help="Create, list, show and delete the steering concepts of a running server."
    )
    commands.command("train")(train)
    commands.command("list")(list_concepts)
    commands.command("show")(show)
    commands.command("delete")(delete)
    return commands


def train(file: ConceptFile, url: Url = _LOCAL, token: Token = None) -> None:
    """Create a concept from a file with examples, and print its report."""
    with _reporting_errors():
        concept = _read_concept(file)
        _print_concept(asyncio.run(_train(_client(url, token), concept)))


def list_concepts(url: Url = _LOCAL, token: Token = None) -> None:
    """List all concepts, and the concept files that cannot be used."""
    with _reporting_errors():
        _print_overview(asyncio.run(_ask(_client(url, token), "GET", _ROUTE)))


def show(concept: ConceptId, url: Url = _LOCAL, token: Token = None) -> None:
    """Print the state and the report of a concept."""
    with _reporting_errors():
        _print_concept(asyncio.run(_ask(_client(url, token), "GET", _path(concept))))


def delete(concept: ConceptId, url: Url = _LOCAL, token: Token = None) -> None:
    """Delete a created concept. Shipped concepts cannot be deleted."""
    with _reporting_errors():
        asyncio.run(_ask(_client(url, token), "DELETE", _path(concept)))


@contextmanager
def _reporting_errors() -> Iterator[None]:
    with exit_on_errors():
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CommandError(f"the server cannot be reached: {reason}") from None


def _read_concept(file: Path) -> Json:
    """Reads a concept that can be sent as JSON. The server checks the rest. Raises CommandError."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))  # reads JSON as well
        if not isinstance(content, dict) or not content.keys() <= _KEYS or "examples" not in content:
            raise CommandError(f"{file}: must have examples, may have name and description, and no other key")
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except OSError as error:
        raise CommandError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CommandError(f"{file}: is not valid YAML or JSON: {reason}") from None
    return content


def _client(url: str, token: str | None) -> httpx.AsyncClient:
    headers = {} if token is None else {b"Authorization": b"Bearer " + token.encode()}
    return httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=_ANSWER_SECONDS)


async def _train(client: httpx.AsyncClient, concept: Json) -> Json:
    async with client:
        # The training may take any time, so httpx must not time out.
        creating = asyncio.create_task(client.post(_ROUTE, json=concept, timeout=None))
        try:
            with _progress_bar() as show:
                while not creating.done():
                    await asyncio.wait({creating}, timeout=_POLL_SECONDS)
                    seen = await client.get(_path(_name_of(concept)))
                    if seen.is_success:
                        show(seen.json())
        finally:  # If the progress cannot be read, the error of the creation is not reported as well.
            creating.cancel()
            await asyncio.gather(creating, return_exceptions=True)
    return _content(creating.result())


@contextmanager
def _progress_bar() -> Iterator[Callable[[Json], None]]:
    """Shows a progress bar on a terminal, and removes it at the end. Yields a function that updates it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("sending", total=1.0)
        yield lambda card: progress.update(bar, description=card["state"], completed=card["progress"])


def _name_of(concept: Json) -> str:
    """The name in the concept's future id. Any text if the concept is not valid."""
    if concept.get("name") is not None:
        return str(concept["name"])
    try:
        return digest_of(msgspec.convert(concept["examples"], tuple[Example, ...]))
    except msgspec.ValidationError:
        return "unknown"


async def _ask(client: httpx.AsyncClient, method: str, path: str) -> Json:
    async with client:
        return _content(await client.request(method, path))


def _path(concept: str) -> str:
    return f"{_ROUTE}/{quote(concept, safe='')}"


def _content(response: httpx.Response) -> Json:
    """The content of an answer. Raises CommandError, with the server's error message if there is one."""
    try:
        content: Json = response.json() if response.content else {}
        message = None if response.is_success else str(content["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the answer with status {response.status_code} is not from a Tiller server"
    if message is not None:
        raise CommandError(message)
    return content


def _print_overview(overview: Json) -> None:
    table = Table("id", "state", "examples", "description")
    for card in overview["data"]:
        state = card["state"] if card["state"] == "ready" else f"{card['state']} {card['progress']:.0%}"
        table.add_row(*map(Text, (card["id"], state, str(card["num_examples"]), card["description"])))
    Console().print(table)
    for problem in overview["problems"]:
        typer.echo(f"tiller: concept file {problem['file']} is left out: {problem['reason']}", err=True)


def _print_concept(concept: Json) -> None:
    typer.echo(f"{concept['id']}: {concept['state']}, examples: {concept['num_examples']}")
    if concept["error"]:
        typer.echo(f"Failed: {concept['error']}")
    if report := concept["report"]:
        _print_report(report)


def _print_report(report: Json) -> None:
    table = Table("strength", "shift", "perplexity ratio")
    for effect in report["effects"]:
        ratio = effect["perplexity_ratio"]
        shown = "not finite" if ratio is None else f"{ratio:.2f}"
        table.add_row(f"{effect['strength']:+g}", f"{effect['shift']:+.3f}", shown)
    Console().print(table)
    typer.echo(report["summary"])
    for warning in report["warnings"]:
        typer.echo(f"Warning: {warning}")
