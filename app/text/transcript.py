"""Converts token events to a completion, or to the chunks of a stream. Pure: no I/O, no clock.

Both use `Transcript.feed`, so a streamed answer has the same text and token entries as a whole one.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET, UnsetType

from app.schemas.completions import (
    AssistantMessage,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
    Logprobs,
    SteeringReadings,
    SteeringReport,
    TokenLogprob,
    TokenReadings,
    Usage,
)
from app.text.stop_filter import StopFilter
from app.text.token_entries import TokenEntries, TokenEntry
from app.text.tokenizer import Tokenizer
from inference.interface import requests


@dataclass(frozen=True)
class AnswerHeader:
    """The fields that a completion, or all chunks of one stream, share."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str


@dataclass(frozen=True)
class ConceptDigests:
    """The concepts that a request names: id -> digest. The engine knows only digests, the answer has ids."""

    steering: Mapping[str, str] = field(default_factory=dict)
    readings: Mapping[str, str] = field(default_factory=dict)


class Progress(msgspec.Struct, frozen=True):
    """What one engine step adds to a choice. Only in a choice's last Progress may `text` be empty."""

    index: int
    text: str
    logprobs: list[TokenLogprob]
    readings: list[TokenReadings]
    finish_reason: FinishReason | None = None
    running: bool = False
    """The choice has ended at a stop sequence but still runs in the engine, so the caller must abort it."""


class Transcript:
    """The answer to one request, as it grows."""

    def __init__(
        self,
        header: AnswerHeader,
        tokenizer: Tokenizer,
        request: requests.GenerationRequest,
        stop: Sequence[str] = (),
        digests: ConceptDigests = ConceptDigests(),
    ) -> None:
        self._header = header
        self._prompt_tokens = len(request.prompt_token_ids)
        self._with_logprobs = request.sampling.top_logprobs is not None
        self._with_readings = bool(request.readings)
        self._steering_digests = digests.steering
        self._steering: SteeringReport | UnsetType = UNSET
        entries = TokenEntries(tokenizer, request.readings, digests.readings)
        self._choices = [_Choice(tokenizer, stop, entries) for _ in range(request.n)]

    def report_clipped(self, clipped: Mapping[str, float]) -> None:
        """Reports strengths that the engine has reduced: digest -> the strength that is used."""
        applied = {
            concept: clipped[digest]
            for concept, digest in self._steering_digests.items()
            if digest in clipped
        }
        self._steering = SteeringReport(applied) if applied else UNSET

    def feed(self, events: list[requests.TokenEvent]) -> list[Progress]:
        """Adds the events of one engine step. Ignores events of choices that have ended."""
        running: dict[int, bool] = {}
        for event in events:
            choice = self._choices[event.index]
            if choice.finish_reason is None:
                choice.push(event)
                running[event.index] = event.finish_reason is None
        progress = []
        for index, still_running in running.items():
            text, entries = self._choices[index].take()
            reason = self._choices[index].finish_reason
            if text or reason:
                logprobs = [entry.logprob for entry in entries if entry.logprob]
                readings = [entry.readings for entry in entries if entry.readings]
                running_after_end = still_running and reason is not None
                progress.append(Progress(index, text, logprobs, readings, reason, running_after_end))
        return progress

    @property
    def ended(self) -> bool:
        return all(choice.finish_reason for choice in self._choices)

    @property
    def finish_reasons(self) -> list[FinishReason | None]:
        """The finish reason of each choice. None: the choice has not ended."""
        return [choice.finish_reason for choice in self._choices]

    @property
    def usage(self) -> Usage:
        completion = sum(choice.tokens for choice in self._choices)
        return Usage(self._prompt_tokens, completion, self._prompt_tokens + completion)

    def completion(self, steps: Iterable[Progress]) -> ChatCompletion:
        """Joins all steps of a finished answer into one completion."""
        texts: list[list[str]] = [[] for _ in self._choices]
        logprobs: list[list[TokenLogprob]] = [[] for _ in self._choices]
        readings: list[list[TokenReadings]] = [[] for _ in self._choices]
        for step in steps:
            texts[step.index].append(step.text)
            logprobs[step.index] += step.logprobs
            readings[step.index] += step.readings
        header = self._header
        return ChatCompletion(
            id=header.id,
            created=header.created,
            model=header.model,
            system_fingerprint=header.system_fingerprint,
            choices=[
                Choice(
                    index=index,
                    message=AssistantMessage(content="".join(texts[index])),
                    logprobs=self._logprobs(logprobs[index]),
                    finish_reason=choice.finish_reason or "content_filter",
                    steering_readings=self._readings(readings[index]),
                )
                for index, choice in enumerate(self._choices)
            ],
            usage=self.usage,
            steering=self._steering,
        )

    def opening(self) -> list[ChatChunk]:
        """The first chunks of a stream: one for each choice, with its role."""
        first = Delta(role="assistant", content="")
        return [self._chunk(ChunkChoice(index, first)) for index in range(len(self._choices))]

    def chunks(self, step: Progress) -> list[ChatChunk]:
        chunks = []
        if step.text:
            chunks.append(self._chunk(self._with_entries(step, Delta(content=step.text))))
        if step.finish_reason:
            # A token without text that comes after all text has no content chunk, because none is ever empty.
            # So the last chunk has its entry. The OpenAI SDK adds it to the others. Aleph Alpha's clients
            # read only the finish reason of this chunk. They fail on an empty delta without one.
            left = not step.text and (step.logprobs or step.readings)
            last = self._with_entries(step, Delta()) if left else ChunkChoice(step.index, Delta())
            last = msgspec.structs.replace(last, finish_reason=step.finish_reason)
            chunks.append(self._chunk(last, self._header.system_fingerprint, steering=self._steering))
        return chunks

    def usage_chunk(self) -> ChatChunk:
        return self._chunk(None, self._header.system_fingerprint, self.usage)

    def _with_entries(self, step: Progress, delta: Delta) -> ChunkChoice:
        logprobs, readings = self._logprobs(step.logprobs), self._readings(step.readings)
        return ChunkChoice(step.index, delta, logprobs, steering_readings=readings)

    def _logprobs(self, entries: list[TokenLogprob]) -> Logprobs | None:
        return Logprobs(entries) if self._with_logprobs else None

    def _readings(self, entries: list[TokenReadings]) -> SteeringReadings | UnsetType:
        return SteeringReadings(entries) if self._with_readings else UNSET

    def _chunk(
        self,
        choice: ChunkChoice | None,
        system_fingerprint: str | None = None,
        usage: Usage | None = None,
        steering: SteeringReport | UnsetType = UNSET,
    ) -> ChatChunk:
        return ChatChunk(
            id=self._header.id,
            created=self._header.created,
            model=self._header.model,
            system_fingerprint=system_fingerprint,
            choices=[] if choice is None else [choice],
            usage=usage,
            steering=steering,
        )


class _Choice:
    """The text of one choice, and the entries of its tokens.

    `take` returns a token's entry once it has returned text beyond the token's start, or, if the token has no
    text, all text before it. This never happens for tokens that lie wholly in a removed stop sequence, and
    `take` drops them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], entries: TokenEntries) -> None:
        self._entries = entries
        self._stream = tokenizer.decode_stream()
        self._filter = StopFilter(stop)
        self._text = ""
        self._undecoded: deque[TokenEntry] = deque()
        """Entries of tokens whose text the decoder holds back."""
        self._waiting: deque[tuple[TokenEntry, int]] = deque()
        """Entries of the tokens before, and the length that the returned text must have for each."""
        self.tokens = 0
        """Number of generated tokens, without the end-of-turn token."""
        self.finish_reason: FinishReason | None = None

    def push(self, event: requests.TokenEvent) -> None:
        if event.finish_reason is requests.FinishReason.STOP:
            self._end("stop")
            return
        self.tokens += 1
        if entry := self._entries.make(event):
            self._undecoded.append(entry)
        self._add(self._stream.push(event.token_id))
        if event.finish_reason is requests.FinishReason.LENGTH:
            self._end("length")
        if self._filter.stopped:
            self.finish_reason = "stop"

    def take(self) -> tuple[str, list[TokenEntry]]:
        """The text that has become final since the last call, with the entries of its tokens.

        Before the choice has ended, returns entries only together with text.
        """
        text, self._text = self._text, ""
        entries = []
        if text or self.finish_reason:
            while self._waiting and self._waiting[0][1] <= self._filter.released:
                entries.append(self._waiting.popleft()[0])
        return text, entries

    def _add(self, texts: Sequence[str]) -> None:
        for text in texts:
            if self._undecoded:
                entry = self._undecoded.popleft()
                self._waiting.append((entry, self._filter.length + entry.can_have_text))
            self._text += self._filter.push(text)

    def _end(self, reason: FinishReason) -> None:
        self._add(self._stream.finish())
        self._text += self._filter.finish()
        self.finish_reason = reason
        if not self._filter.stopped:  # what is left are tokens without text
            entries = [*(entry for entry, _ in self._waiting), *self._undecoded]
            self._waiting = deque((entry, 0) for entry in entries)
