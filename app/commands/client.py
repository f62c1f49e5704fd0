"""What all commands that talk to a running server share: its address, the connection, readable errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer

from app.commands.errors import CommandError, exit_on_errors

LOCAL = "http://127.0.0.1:8000"
_ANSWER_SECONDS = 30.0

Url = Annotated[str, typer.Option(envvar="TILLER_URL", help="URL of the server.")]
Token = Annotated[str | None, typer.Option(envvar="TILLER_TOKEN", help="Access token for the server.")]
Json = dict[str, Any]


class RefusedError(CommandError):
    """The server has answered with an error. `code`: its error code, or "" if it is not a Tiller server."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Ends the command with one line if the block raises a CommandError, or cannot reach the server."""
    with exit_on_errors(), reaching_server():
        yield


@contextmanager
def reaching_server() -> Iterator[None]:
    """Raises CommandError if the block cannot reach the server, or loses the connection."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        is_absent = isinstance(error, httpx.ConnectError) and "SSL" not in reason
        advice = "; `tiller serve` starts one, and --url names another" if is_absent else ""
        raise CommandError(f"the server cannot be reached: {reason}{advice}") from None


def connect(url: str, token: str | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url.rstrip("/"), headers=_headers(token), timeout=_ANSWER_SECONDS)


def connect_blocking(url: str, token: str | None, seconds: float = _ANSWER_SECONDS) -> httpx.Client:
    """Like `connect`, for commands without concurrency. `seconds`: time limit for each answer."""
    return httpx.Client(base_url=url.rstrip("/"), headers=_headers(token), timeout=seconds)


def _headers(token: str | None) -> dict[bytes, bytes]:
    return {} if token is None else {b"Authorization": b"Bearer " + token.encode()}


async def ask(
    client: httpx.AsyncClient, method: str, path: str, params: dict[str, str] | None = None
) -> Json:
    async with client:
        return content_of(await client.request(method, path, params=params))


def content_of(response: httpx.Response) -> Json:
    """The content of an answer. Raises RefusedError, with the server's error message if there is one."""
    try:
        content: Json = response.json() if response.content else {}
        message = None if response.is_success else _for_commands(str(content["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        raise RefusedError(
            f"the answer with status {response.status_code} is not from a Tiller server"
        ) from None
    if message is not None:
        raise RefusedError(message + _advice(response), str(content.get("code", "")))
    return content


def _for_commands(message: str) -> str:
    """The server's message, with a command in place of a route that does the same."""
    return message.replace("GET /steering_concepts lists", "`tiller concept list` lists")


def _advice(response: httpx.Response) -> str:
    """What the user can do about a refusal, as an end of the server's message. May be empty."""
    if response.status_code == 401:
        return "; pass one with --token or TILLER_TOKEN (`tiller token new NAME` makes one)"
    if seconds := response.headers.get("Retry-After"):
        return f"; try again in {seconds} s"
    return ""
