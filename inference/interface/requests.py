"""The messages about requests: what to generate, and the results. Typed data."""

from enum import StrEnum

import msgspec


class SamplingParams(msgspec.Struct, frozen=True):
    """How a token is sampled from the logits. The defaults sample from the model's own distribution."""

    temperature: float = 1.0
    """Divides the logits. 0: greedy, the most likely token is taken."""
    top_p: float = 1.0
    top_k: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    """Maps a token id to a number that is added to its logit.

    A bias <= -100 bans the token. If any bias is >= 100, only tokens with such a bias can be sampled.
    """
    top_logprobs: int | None = None
    """k: report log probabilities of the sampled token and of the k most likely tokens. None: report none."""


class SteeringScope(StrEnum):
    """Which positions of a sequence are steered. The first position never is."""

    ALL = "all"
    PROMPT = "prompt"
    """The positions of the prompt's tokens, and no others."""
    ANSWER = "answer"
    """The positions of the answer's tokens. The first of them is still predicted by the unsteered prompt."""


class SteeringMode(StrEnum):
    """What steering does to the output h of a decoder block, with the unit direction u of a concept."""

    ADD = "add"
    """Adds the strength times what strength 1 adds, along u."""
    ABLATE = "ablate"
    """Removes the component along u: h - strength * (u h) u. Strength 1 removes it completely."""
    CLAMP = "clamp"
    """Replaces the component along u by what `ADD` would add."""


class SteeringCondition(msgspec.Struct, frozen=True):
    """Steers the answer only if a concept's mean reading over the prompt is in a range, borders excluded."""

    concept: str
    """Digest of the concept."""
    above: float | None = None
    below: float | None = None


class SteeringSpec(msgspec.Struct, frozen=True):
    """The concepts that steer a request's activations, and how."""

    strengths: dict[str, float]
    """Digest of each concept's examples -> its strength, never 0.

    A digest, because new examples under an old name must not affect running requests.
    """
    scope: SteeringScope = SteeringScope.ALL
    mode: SteeringMode = SteeringMode.ADD
    condition: SteeringCondition | None = None
    """If it is set, only answers are steered, whatever the scope."""


class GenerationRequest(msgspec.Struct, frozen=True, tag="submit"):
    """One request to the engine: generate `n` choices for the same prompt."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    n: int = 1
    sampling: SamplingParams = SamplingParams()
    stop_token_ids: tuple[int, ...] = ()
    nice: bool = False
    steering: SteeringSpec | None = None
    readings: tuple[str, ...] = ()
    """Digests of the concepts to read at each token of the answer."""

    @property
    def concepts(self) -> list[str]:
        """The digests of all concepts that the request needs."""
        found = list(self.readings)
        if self.steering:
            found += self.steering.strengths
            found += [self.steering.condition.concept] if self.steering.condition else []
        return list(dict.fromkeys(found))


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End choice `index` of a request, or all its choices (None), or a ReadTexts. No result follows."""

    request_id: str
    index: int | None = None


class FinishReason(StrEnum):
    STOP = "stop"
    """The token is one of the request's stop tokens. It is not part of the content."""
    LENGTH = "length"
    """The token is the last one that max_tokens allows."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position, from the logits before SamplingParams are applied."""

    logprob: float
    """Log probability of the sampled token."""
    top: list[tuple[int, float]]
    """(token id, log probability) of the most likely tokens, most likely first."""


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One sampled token of one choice. The event with a finish_reason is the choice's last."""

    request_id: str
    index: int
    token_id: int
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    readings: list[float] | None = None
    """How strongly each concept of the request's `readings` is present, from the activations at this token.

    0 and 1 are the means of the concept's negative and positive examples. Set if the request asks for
    readings and the token is part of the content.
    """


class RefusalCode(StrEnum):
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    UNKNOWN_STEERING_CONCEPT = "UNKNOWN_STEERING_CONCEPT"
    QUEUE_FULL = "QUEUE_FULL"
    INTERNAL = "INTERNAL"


class SubmitResult(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a GenerationRequest: accepted (`refusal` is None) or refused."""

    request_id: str
    refusal: RefusalCode | None = None
    detail: str = ""
    """What the refusal is about, such as the unknown concept's digest."""
    clipped: dict[str, float] = {}
    """The strengths that were reduced to what the concept allows: digest -> strength that is used."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """All choices of an accepted request end here, because the engine failed to compute it."""

    request_id: str
    detail: str
