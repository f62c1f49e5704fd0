"""One request on its way through the engine, and the answers that come of it. Knows no validation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from app.concepts.concept import Concept as Definition
from app.schemas.completions import TokenLogprob
from app.schemas.concepts import ID_PREFIX
from app.text.tokenizer import Tokenizer
from app.text.transcript import AnswerHeader, ConceptDigests, Progress, Transcript
from inference.driver import Driver
from inference.interface.requests import FinishReason, GenerationRequest, TokenEvent
from tiller.errors import EngineError

_NO_HEADER = AnswerHeader(id="", created=0, model="", system_fingerprint="")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request. `str(answer)` is its text."""

    text: str
    """What the model has generated, without special tokens and without the stop sequence."""
    finish_reason: Literal["stop", "length"]
    """ "stop": the model has ended its turn, or a stop sequence has appeared. "length": it was cut off."""
    num_prompt_tokens: int
    """Length of the prompt, with the tokens of the chat template."""
    token_ids: list[int] = field(repr=False)
    """The text's tokens, without those that lie wholly in a stop sequence, and without the end of turn."""
    tokens: list[str] = field(repr=False)
    """The same tokens as texts. A token that is only a part of a character has a replacement character."""
    logprobs: list[TokenLogprob] | None = field(default=None, repr=False)
    """One entry for each token, with `logprob` and `top_logprobs`, in nats, before sampling parameters are
    applied. None: not asked for."""
    readings: dict[str, list[float]] = field(default_factory=dict)
    """By concept: one number for each token. 0 and 1 are the means of the concept's negative and positive
    examples. NaN if it is not finite."""
    applied: dict[str, float] = field(default_factory=dict)
    """By concept: the strength that was used, if it had to be reduced to what the concept allows."""

    def __str__(self) -> str:
        return self.text


class Generation:
    """A request, the transcript of its answer, and what the transcript has made of the engine's events."""

    def __init__(
        self,
        driver: Driver,
        tokenizer: Tokenizer,
        request: GenerationRequest,
        stop: tuple[str, ...],
        digests: ConceptDigests,
        concepts: Sequence[Definition],
    ) -> None:
        """`concepts`: those that must be trained before `start`."""
        self.request = request
        self.concepts = concepts
        self._driver = driver
        self._digests = digests
        self._transcript = Transcript(_NO_HEADER, tokenizer, request, stop, digests)
        self._choices = [_Choice() for _ in range(request.n)]
        self._applied: dict[str, float] = {}

    def start(self) -> None:
        """Hands the request to the engine. Raises RefusedError."""
        clipped = self._driver.add(self.request).clipped
        self._applied = {
            _name(concept): clipped[digest]
            for concept, digest in self._digests.steering.items()
            if digest in clipped
        }

    def end(self) -> None:
        """Removes the request from the engine, whether it has ended or not. Does not wait for a step."""
        self._driver.discard(self.request)

    @property
    def has_news(self) -> bool:
        """Whether the engine has reported more than `take` has taken."""
        news = any(len(self._events(index)) > choice.taken for index, choice in enumerate(self._choices))
        return news or self.request.request_id in self._driver.failures

    @property
    def ended(self) -> bool:
        return self._transcript.ended

    def take(self) -> list[Progress]:
        """What is new since the last call. Raises EngineError if the request has failed."""
        if detail := self._driver.failures.get(self.request.request_id):
            raise EngineError(f"the request failed: {detail}")
        steps = self._transcript.feed(self._take_events())
        for step in steps:
            self._choices[step.index].add(step)
            if step.running:
                self._driver.abort(self.request.request_id, step.index)
        return steps

    def answers(self) -> list[Answer]:
        """The answer of each choice. Call it when the request has `ended`."""
        names = {_name(concept): concept for concept in self._digests.readings}
        return [
            Answer(
                text="".join(choice.texts),
                finish_reason="length" if reason == "length" else "stop",
                num_prompt_tokens=len(self.request.prompt_token_ids),
                token_ids=choice.token_ids[: len(choice.tokens)],
                tokens=choice.tokens,
                logprobs=None if self.request.sampling.top_logprobs is None else choice.logprobs,
                readings={
                    name: [_number(readings[concept]) for readings in choice.readings]
                    for name, concept in names.items()
                },
                applied=self._applied,
            )
            for choice, reason in zip(self._choices, self._transcript.finish_reasons, strict=True)
        ]

    def _take_events(self) -> list[TokenEvent]:
        """The new events. Each has readings, perhaps of no concept: so the transcript keeps each token."""
        events: list[TokenEvent] = []
        for index, choice in enumerate(self._choices):
            new = self._events(index)[choice.taken :]
            choice.taken += len(new)
            choice.token_ids += [
                event.token_id for event in new if event.finish_reason is not FinishReason.STOP
            ]
            events += [msgspec.structs.replace(event, readings=event.readings or []) for event in new]
        return events

    def _events(self, index: int) -> list[TokenEvent]:
        result = self._driver.results.get((self.request.request_id, index))
        return result.events if result else []


@dataclass
class _Choice:
    """What is known of a choice."""

    taken: int = 0
    """Number of events that the transcript has got."""
    token_ids: list[int] = field(default_factory=list)
    """Of all events but that of the end of turn."""
    texts: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    readings: list[dict[str, float | None]] = field(default_factory=list)

    def add(self, step: Progress) -> None:
        self.texts.append(step.text)
        self.tokens += [entry.token for entry in step.readings]
        self.logprobs += step.logprobs
        self.readings += [entry.readings for entry in step.readings]


def _name(concept: str) -> str:
    return concept.removeprefix(ID_PREFIX)


def _number(reading: float | None) -> float:
    return float("nan") if reading is None else reading
