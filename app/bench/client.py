"""One chat server over HTTP: its model, how it counts prompts, and streams as they come."""

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
"""A server that says nothing for so long is taken for dead."""


class BenchError(Exception):
    """The benchmark cannot go on. The message is one line for whoever started it."""


@dataclass(frozen=True)
class Target:
    """A server to measure."""

    name: str
    url: str
    """Without the /v1 of its routes."""
    token: str | None = None
    model: str | None = None
    """None: the first one that it lists."""


@dataclass(frozen=True)
class Exchange:
    """A request that is over, its stream not yet read; `error` if it was not answered to the end."""

    pieces: Pieces = ()
    error: str | None = None

    def read(self) -> Record:
        return read_stream(self.pieces) if self.error is None else Record(error=self.error)


def parse_target(text: str, token: str | None, model: str | None) -> Target:
    """A target from `NAME=URL` or `URL`, whose name is then its host and port. Raises BenchError."""
    named = _NAMED.fullmatch(text)
    url = (named["url"] if named else text).rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BenchError(f"{text!r} is no [NAME=]URL of a server")
    return Target(named["name"] if named else parsed.netloc.decode(), url, token, model)


def connect(target: Target) -> httpx.AsyncClient:
    """A client whose requests have a connection each, any number at a time, and ask for no compression."""
    headers = {b"Accept-Encoding": b"identity", b"Content-Type": b"application/json"}
    if target.token is not None:
        headers[b"Authorization"] = b"Bearer " + target.token.encode()
    return httpx.AsyncClient(
        base_url=target.url,
        headers=headers,
        timeout=_SILENCE_SECONDS,
        # llama.cpp's server says that it keeps connections, and closes them.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        verify=target.url.startswith("https:"),  # reading the certificates takes time
        trust_env=False,  # a proxy is for other servers than those whose latency one wants to know
    )


async def first_model(client: httpx.AsyncClient) -> str:
    """The first model that the server lists. Raises BenchError."""
    answer = await _ask(client, "GET", _MODELS)
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise BenchError("its list of models cannot be understood") from None


async def count_prompt_tokens(client: httpx.AsyncClient, model: str, prompt: str) -> int:
    """How long the server says this prompt is, with its template. Raises BenchError."""
    answer = await _ask(client, "POST", _CHAT, _request(model, prompt) | {"max_tokens": 1})
    try:
        return int(answer["usage"]["prompt_tokens"])
    except (KeyError, ValueError, TypeError):
        raise BenchError("its answer does not say usage.prompt_tokens") from None


@dataclass(frozen=True)
class Workload:
    """What is the same in all requests."""

    tokens: int = 64
    """Of each answer."""
    temperature: float = 0.7
    banned: tuple[int, ...] = ()
    """Ids of the tokens that end an answer: their logit bias is -100."""

    def encode(self, model: str, prompt: str) -> bytes:
        """The body of a streaming request."""
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
    """Sends a streaming request and stamps what comes."""
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
        raise BenchError(f"{method} {path} is not answered with JSON") from None


def _explain(response: httpx.Response) -> str:
    """With the server's own words if there are any."""
    try:
        words = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        words = response.text
    return " ".join(f"answers {response.status_code}: {words}".split())[:300]
