"""An admitted request's way out: as server-sent events or whole. A client that leaves ends its generation.

Knows HTTP and the order of events; what is in them comes from the transcript.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import anyio
import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import InternalError
from app.http.errors import error_body, for_caller
from app.limits.admission import AdmittedRequest
from app.schemas.completions import ChatChunk
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observation
from app.text.transcript import Progress, Transcript
from app.workers.engine import Generation

_HEADERS = {"cache-control": "no-store", "connection": "keep-alive", "x-accel-buffering": "no"}
_DONE = b"data: [DONE]\n\n"
_JSON = msgspec.json.Encoder()

# JSON may hold these as they are, but many clients split lines at them.
_LINE_BREAKS = [
    ("\u0085".encode(), rb"\u0085"),
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
]


@dataclass(frozen=True)
class Answer:
    """A generation that runs, and the transcript that it fills."""

    seen: Observation
    generation: Generation
    transcript: Transcript
    metrics: Metrics
    admitted: AdmittedRequest

    @contextmanager
    def running(self) -> Iterator[None]:
        """However the context is left, and however early, nothing goes on generating."""
        self.metrics.count_first_token(self.seen)
        with self.metrics.running.track_inprogress():
            try:
                yield
            finally:
                if not self.transcript.ended:
                    self.generation.abort()
                usage = self.seen.usage = self.transcript.usage
                self.seen.finish_reasons = self.transcript.finish_reasons
                self.metrics.count_generation(self.seen)
                self.admitted.end(usage.total_tokens)

    async def steps(self) -> AsyncIterator[Progress]:
        """Raises what the generation raises."""
        answers = self.seen.answers
        async for events in self.generation:
            for step in self.transcript.feed(events):
                if step.running:
                    self.generation.abort(step.index)
                if answers is not None:
                    answers[step.index] += step.text
                yield step
        if not self.transcript.ended:
            raise InternalError("the engine left a choice without an end")


class AnswerStream(StreamingResponse):
    """The answer as it comes; the generation is aborted as soon as the client leaves.

    A client that reads slowly is waited for. When the server stops, the engine ends the generation; what
    is not sent soon after that, the server cuts off.
    """

    def __init__(self, answer: Answer, include_usage: bool) -> None:
        super().__init__(_events(answer, include_usage), headers=_HEADERS, media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        with suppress(ClientDisconnect), self._answer.running():
            async with while_connected(receive):
                await self.stream_response(send)


async def respond(answer: Answer, receive: Receive) -> Response:
    """The whole answer at once; the generation is aborted as soon as the client leaves."""
    with answer.running():
        async with while_connected(receive):
            completion = answer.transcript.completion([step async for step in answer.steps()])
        return Response(msgspec.json.encode(completion), media_type="application/json")


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block as soon as the client leaves, and then raises ClientDisconnect."""
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
    except Exception as error:  # The status is sent: all that is left is one last event.
        told = for_caller(error, answer.seen.request_id)
        answer.seen.error = told.code.value
        yield _event(error_body(told))


def _encode(chunks: list[ChatChunk]) -> bytes:
    return b"".join(map(_event, chunks))


def _event(content: object) -> bytes:
    line = _JSON.encode(content)
    if not line.isascii():
        for character, escaped in _LINE_BREAKS:
            line = line.replace(character, escaped)
    return b"data: %b\n\n" % line
