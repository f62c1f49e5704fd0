"""HTTP client for one chat server: asks for its model and its token counts, and times its streams."""

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx

from app.bench.records import Pieces, Record, read_stream

_MODELS = "/v1/models"
_CHAT = "/v1/chat/completions"
_NAMED = re.compile(r"(?P<name>[^=/:]+)=(?P<url>.+)")
_SILENCE_SECONDS = 600.0
"""How long a server may send nothing before the request fails."""


class BenchError(Exception):
    """The benchmark cannot go on. The user of the command reads the message."""


@dataclass(frozen=True)
class Target:
    """A server to measure."""

    name: str
    url: str
    """The base URL, without /v1."""
    token: str | None = None
    """The access token to send. None: no Authorization header."""
    model: str | None = None
    """The model to request. None: the first one that the server lists."""


@dataclass(frozen=True)
class Exchange:
    """A finished request, whose stream is not parsed yet. `error` says why the answer is not complete."""

    pieces: Pieces = ()
    error: str | None = None

    def read(self) -> Record:
        return read_stream(self.pieces) if self.error is None else Record(error=self.error)


def parse_target(text: str, token: str | None, model: str | None) -> Target:
    """Parses `NAME=URL` or `URL`. The default name is the host and the port. Raises BenchError."""
    named = _NAMED.fullmatch(text)
    url = (named["url"] if named else text).rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BenchError(f"{text!r} is not of the form [NAME=]URL, with an http or https URL")
    return Target(named["name"] if named else parsed.netloc.decode(), url, token, model)


def connect(target: Target) -> httpx.AsyncClient:
    """A client that opens a connection for each request, without a limit, and refuses compression."""
    headers = {b"Accept-Encoding": b"identity", b"Content-Type": b"application/json"}
    if target.token is not None:
        headers[b"Authorization"] = b"Bearer " + target.token.encode()
    return httpx.AsyncClient(
        base_url=target.url,
        headers=headers,
        timeout=_SILENCE_SECONDS,
        # llama.cpp's server promises to keep connections open, but closes them.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        verify=target.url.startswith("https:"),  # loading the certificates takes time
        trust_env=False,  # a proxy would change the latency
    )


async def first_model(client: httpx.AsyncClient) -> str:
    """Returns the id of the first model that the server lists. Raises BenchError."""
    answer = await _ask(client, "GET", _MODELS)
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise BenchError(f"does not answer GET {_MODELS} with a list of models") from None


async def count_prompt_tokens(client: httpx.AsyncClient, model: str, prompt: str) -> int:
    """The server's token count for this prompt, including the chat template. Raises BenchError."""
    answer = await _ask(client, "POST", _CHAT, _request(model, prompt) | {"max_tokens": 1})
    try:
        return int(answer["usage"]["prompt_tokens"])
    except (KeyError, ValueError, TypeError):
        raise BenchError("returns no usage.prompt_tokens") from None


@dataclass(frozen=True)
class Workload:
    """The parameters that all requests share."""

    tokens: int = 64
    """Length of each answer, in tokens."""
    temperature: float = 0.7
    banned: tuple[int, ...] = ()
    """Ids of the end-of-turn tokens. A logit_bias of -100 bans them, so that no answer ends early."""

    def encode(self, model: str, prompt: str) -> bytes:
        """Encodes the body of a streaming request."""
        body = _request(model, prompt) | {
            "max_tokens": self.tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.banned:
            body["logit_bias"] = {str(token): -100 for token in self.banned}
        return json.dumps(body).encode()


async def exchange(client: httpx.AsyncClient, body: bytes) -> Exchange:
    """Sends a streaming request, and records when each piece of the answer arrives."""
    sent = time.perf_counter()
    try:
        async with client.stream("POST", _CHAT, content=body) as response:
            if not response.is_success:
                await response.aread()
                return Exchange(error=_explain(response))
            return Exchange([(time.perf_counter() - sent, piece) async for piece in response.aiter_raw()])
    except httpx.HTTPError as error:
        return Exchange(error=f"connection failed: {error or type(error).__name__}")


def _request(model: str, prompt: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


async def _ask(client: httpx.AsyncClient, method: str, path: str, body: object = None) -> Any:
    try:
        response = await client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise BenchError(f"cannot be reached: {error or type(error).__name__}") from None
    if not response.is_success:
        raise BenchError(_explain(response))
    try:
        return response.json()
    except ValueError:
        raise BenchError(f"does not answer {method} {path} with JSON") from None


def _explain(response: httpx.Response) -> str:
    """The status and the error message of an answer. Falls back to the body."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text
    return " ".join(f"answers {response.status_code}: {message}".split())[:300]
