"""The server as a chat sees it: its models, its concepts, its answers. Knows no terminal."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from app.commands.chat.session import short_name
from app.commands.client import Json, RefusedError, content_of, reaching_server
from app.commands.concept_client import path_of
from app.commands.errors import CommandError

_CONNECT_SECONDS = 30.0
_WHILE_ANSWERING = httpx.Timeout(_CONNECT_SECONDS, read=None)
"""An answer may wait for the training of a concept, so there is no limit for its time."""


@dataclass
class Ending:
    """What is known about an answer at its end."""

    finish_reason: str | None = None
    applied: dict[str, float] = field(default_factory=dict)
    """Concepts whose strength the server has reduced -> the strength that it used."""


class ChatServer:
    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def models(self) -> list[str]:
        """Raises CommandError, like all methods."""
        return [model["id"] for model in self._get("/models")["data"]]

    def concepts(self, model: str | None = None) -> list[Json]:
        """The entries of the server's list of concepts, with their state on `model`."""
        concepts: list[Json] = self._get("/steering_concepts", model=model)["data"]
        return concepts

    def concept(self, name: str, model: str) -> Json:
        """The concept, with its report and its error on `model`."""
        return self._get(path_of(name), model=model)

    def answer(self, request: Json) -> Json:
        """The whole answer, as the server sends it."""
        with reaching_server(), self._naming_what_there_is():
            response = self._client.post("/chat/completions", **_content(request), timeout=_WHILE_ANSWERING)
            return content_of(response)

    def stream(self, request: Json, ending: Ending) -> Generator[str, None, None]:
        """The pieces of an answer as they come. Fills in `ending`."""
        body = _content({**request, "stream": True})
        with (
            reaching_server(),
            self._naming_what_there_is(),
            self._client.stream("POST", "/chat/completions", **body, timeout=_WHILE_ANSWERING) as response,
        ):
            if not response.is_success:
                response.read()
                content_of(response)
            for event in _events(response):
                ending.applied |= event.get("steering", {}).get("applied", {})
                for choice in event["choices"]:
                    ending.finish_reason = choice["finish_reason"] or ending.finish_reason
                    if text := choice["delta"].get("content"):
                        yield text

    def _get(self, path: str, **query: str | None) -> Json:
        given = {name: value for name, value in query.items() if value is not None}
        with reaching_server():
            return content_of(self._client.get(path, params=given))

    @contextmanager
    def _naming_what_there_is(self) -> Iterator[None]:
        """Adds the known names to the error about an unknown one."""
        try:
            yield
        except RefusedError as error:
            match error.code:
                case "UNKNOWN_STEERING_CONCEPT":
                    names = [short_name(concept["id"]) for concept in self.concepts()]
                case "UNKNOWN_MODEL":
                    names = self.models()
                case _:
                    raise
            what = str(error).rpartition("; ")[0]  # the end of the message says what lists them
            raise CommandError(f"{what}; there {list_names(names)}") from None


def list_names(names: list[str]) -> str:
    """The end of a sentence that begins with "there": `are: a, b`, or `are none`."""
    return f"are: {', '.join(names)}" if names else "are none"


def _content(request: Json) -> Json:
    """The arguments of httpx. In ASCII, so that the server can refuse a text that is not valid Unicode."""
    return {"content": json.dumps(request), "headers": {"Content-Type": "application/json"}}


def _events(response: httpx.Response) -> Iterator[Json]:
    """The chunks of a streamed answer. Raises CommandError if the answer ends with an error, or early."""
    for line in _lines(response):
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ")
        if data == b"[DONE]":
            return
        event: Json = json.loads(data)
        if error := event.get("error"):
            raise RefusedError(str(error["message"]), str(event.get("code", "")))
        yield event
    raise CommandError("the connection ended before the answer did")


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """The lines of a body. httpx's own `iter_lines` also breaks lines at characters such as U+2028."""
    rest = b""
    for received in response.iter_bytes():
        *lines, rest = (rest + received).split(b"\n")
        yield from (line.rstrip(b"\r") for line in lines)
