"""Sends an answer as server-sent events or in one response. Aborts its generation if the client disconnects.

Knows HTTP and the order of the events. Their content comes from the transcript.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import anyio
import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import InternalError
from app.http.errors import CLIENT_CLOSED_REQUEST, error_body, for_caller
from app.limits.admission import AdmittedRequest
from app.schemas.completions import ChatChunk, Usage
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observation
from app.text.transcript import Progress, Transcript
from app.workers.engine import Generation

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_JSON = msgspec.json.Encoder()

# JSON may contain these characters unescaped, but many clients take them for line breaks.
_LINE_BREAKS = [
    ("\u0085".encode(), rb"\u0085"),
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
]


StartingGeneration: TypeAlias = "asyncio.Task[Generation]"
"""Waits for the first token, and then returns the generation. If cancelled, it aborts the generation."""


@dataclass(frozen=True)
class Answer:
    """A generation, and the transcript that collects its tokens."""

    observation: Observation
    starting: StartingGeneration
    transcript: Transcript
    metrics: Metrics
    admitted: AdmittedRequest

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wraps the sending of the answer. At the end it records usage and metrics, and settles the limits.

        However the block ends, it aborts the generation if any choice is still running. Without a first
        token, nothing was used.
        """
        with self.metrics.running(self.observation.model):
            try:
                yield
            finally:
                if not self.transcript.ended:
                    _abort(self.starting)
                has_begun = self.observation.first_token_seconds is not None
                usage = self.observation.usage = self.transcript.usage if has_begun else Usage(0, 0, 0)
                self.observation.finish_reasons = self.transcript.finish_reasons
                self.metrics.count_generation(self.observation)
                self.admitted.end(usage.total_tokens)

    async def steps(self) -> AsyncIterator[Progress]:
        """The transcript's steps. Raises the generation's exception, or INTERNAL if it ends too early."""
        answers = self.observation.answers
        generation = await self.starting
        self.transcript.report_clipped(generation.clipped)
        async for events in generation:
            for step in self.transcript.feed(events):
                if step.running:
                    generation.abort(step.index)
                if answers is not None:
                    answers[step.index] += step.text
                yield step
        if not self.transcript.ended:
            raise InternalError("the engine ended the generation before every choice had a finish reason")


class AnswerStream(StreamingResponse):
    """Streams the answer as server-sent events. Aborts the generation as soon as the client disconnects.

    A slow reader may take its time. When the server stops, the engine ends the generation, and the server
    closes the connection a few seconds later, even if not all events are sent.
    """

    def __init__(self, answer: Answer, include_usage: bool, ping_seconds: float | None) -> None:
        """`ping_seconds`: sends a comment line at this interval. None: never."""
        super().__init__(_events(answer, include_usage), headers=_HEADERS, media_type="text/event-stream")
        self._answer = answer
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            with self._answer.running():
                async with while_connected(receive):
                    with _pings(send, self._ping_seconds):
                        await self.stream_response(send)
        except ClientDisconnect:
            self._answer.observation.status = CLIENT_CLOSED_REQUEST  # what was sent is 200


async def wait_for_first_token(starting: StartingGeneration, receive: Receive, seconds: float | None) -> None:
    """Returns with the first token, or after `seconds` without one. The body must be read already.

    Raises ClientDisconnect, or the error that the generation fails with. Both end the generation.
    """
    disconnect = asyncio.ensure_future(receive())  # The body is read, so the next message is the disconnect.
    try:
        await asyncio.wait({starting, disconnect}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        elif disconnect.done():
            raise ClientDisconnect
    except BaseException:
        _abort(starting)
        raise
    finally:
        disconnect.cancel()


def _abort(starting: StartingGeneration) -> None:
    if not starting.done():
        starting.cancel()
    elif not starting.cancelled() and not starting.exception():
        starting.result().abort()


async def respond(answer: Answer, receive: Receive) -> Response:
    """The whole answer in one response. Aborts the generation as soon as the client disconnects."""
    with answer.running():
        async with while_connected(receive):
            completion = answer.transcript.completion([step async for step in answer.steps()])
        return Response(msgspec.json.encode(completion), media_type="application/json")


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels the `with` block when the client disconnects, and then raises ClientDisconnect."""
    with anyio.CancelScope() as scope:
        watcher = asyncio.create_task(_cancel_at_disconnect(receive, scope))
        try:
            yield
        finally:
            watcher.cancel()
    if scope.cancelled_caught:
        raise ClientDisconnect


async def _cancel_at_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _events(answer: Answer, include_usage: bool) -> AsyncIterator[bytes]:
    transcript = answer.transcript
    try:
        yield _encode(transcript.opening())
        async for step in answer.steps():
            yield _encode(transcript.chunks(step))
        if include_usage:
            yield _encode([transcript.usage_chunk()])
        yield _DONE
    except Exception as error:  # The status 200 is sent already, so the last event reports the error.
        reported = for_caller(error, answer.observation.request_id)
        answer.observation.error = reported.code.value
        yield _event(error_body(reported))


@contextmanager
def _pings(send: Send, seconds: float | None) -> Iterator[None]:
    """Within the `with` block, sends a comment line every `seconds`. None: never."""
    pinging = None if seconds is None else asyncio.create_task(_ping(send, seconds))
    try:
        yield
    finally:
        if pinging:
            pinging.cancel()


async def _ping(send: Send, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await send({"type": "http.response.body", "body": _PING, "more_body": True})


def _encode(chunks: list[ChatChunk]) -> bytes:
    return b"".join(map(_event, chunks))


def _event(content: object) -> bytes:
    line = _JSON.encode(content)
    if not line.isascii():
        for character, escaped in _LINE_BREAKS:
            line = line.replace(character, escaped)
    return b"data: %b\n\n" % line
