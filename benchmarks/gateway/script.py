"""The answers of the stand-in engines: in each step, each stream gets the next token of a text. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from inference.interface.requests import FinishReason, GenerationRequest, SubmitResult, TokenEvent

TEXT = (
    "The gateway turns each token of this text into an event and sends it to the client that waits for the "
    "answer. No model computes it: the words are the same in all answers, and the text starts again when it "
    "has reached its end. "
)


@dataclass
class _Stream:
    """A running choice."""

    index: int
    max_tokens: int
    position: int = 0
    """Number of tokens so far."""


class Script:
    """The running streams. Each step gives each of them one token."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        """Repeats `token_ids` for ever. Each token should be text that can be sent on its own."""
        self._token_ids = token_ids
        self._running: dict[str, list[_Stream]] = {}

    def add(self, request: GenerationRequest) -> SubmitResult:
        streams = [_Stream(index, request.max_tokens) for index in range(request.n)]
        self._running[request.request_id] = streams
        return SubmitResult(request.request_id)

    def has(self, request_id: str) -> bool:
        """Whether a choice of the request still runs."""
        return request_id in self._running

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends choice `index` of a request, or all of them (None)."""
        streams = self._running.pop(request_id, [])
        if others := [stream for stream in streams if index is not None and stream.index != index]:
            self._running[request_id] = others

    def step(self) -> list[TokenEvent]:
        events = [
            self._advance(request_id, stream)
            for request_id, streams in self._running.items()
            for stream in streams
        ]
        for event in events:
            if event.finish_reason:
                self.abort(event.request_id, event.index)
        return events

    def _advance(self, request_id: str, stream: _Stream) -> TokenEvent:
        token_id = self._token_ids[stream.position % len(self._token_ids)]
        stream.position += 1
        reason = FinishReason.LENGTH if stream.position == stream.max_tokens else None
        return TokenEvent(request_id, stream.index, token_id, reason)
