"""Converts a ChatRequest to a GenerationRequest within the model's limits. Does not render the prompt."""

from collections.abc import Mapping

from app.errors import ApiError, ErrorCode, InvalidRequest, shorten
from app.schemas.chat import ChatRequest
from app.text.vocabulary import check_embedded
from inference.interface.protocol import ModelInfo
from inference.interface.requests import (
    GenerationRequest,
    SamplingParams,
    SteeringCondition,
    SteeringMode,
    SteeringScope,
    SteeringSpec,
)


def generation_request(
    chat: ChatRequest,
    prompt: list[int],
    digests: Mapping[str, str],
    model: ModelInfo,
    end_token_ids: tuple[int, ...],
    request_id: str,
    nice: bool,
    default_max_tokens: int | None = None,
) -> GenerationRequest:
    """`digests`: id of each concept that the chat names -> its digest. `default_max_tokens`: for a chat that
    sets no max_tokens; None, or more than the context leaves: as many as the context leaves.

    Raises CONTEXT_LENGTH_EXCEEDED, or INVALID_REQUEST if the prompt or logit_bias has an id outside the
    vocabulary, if logit_bias bans all of it, or if one digest has two strengths.
    """
    check_embedded(prompt, model.vocab_size, "messages")
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        max_tokens=_max_tokens(chat, default_max_tokens, len(prompt), model),
        n=chat.n,
        sampling=_sampling(chat, model.vocab_size),
        stop_token_ids=end_token_ids,
        nice=nice,
        steering=_steering(chat, digests),
        readings=tuple(dict.fromkeys(digests[concept] for concept in chat.steering_readings)),
    )


def digests_in(request: GenerationRequest) -> set[str]:
    """The digests of all concepts that the engine needs for the request."""
    needed = set(request.readings)
    if request.steering:
        needed |= request.steering.strengths.keys()
        if request.steering.condition:
            needed.add(request.steering.condition.concept)
    return needed


def _max_tokens(chat: ChatRequest, default: int | None, prompt: int, model: ModelInfo) -> int:
    wanted, context = chat.token_limit, model.context_length
    least = 1 if wanted is None else wanted
    if prompt + least > context:
        answer = f" and max_tokens is {shorten(wanted)}" if wanted else ""
        # LangChain, LiteLLM and pydantic-ai recognise this error by its words.
        message = (
            f"the prompt is too long: it has {prompt} tokens{answer}, "
            f"and this model's maximum context length is {context} tokens"
        )
        if model.context_limit:
            message += f" (the server's {model.context_limit} limits it)"
        raise ApiError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message, "max_tokens" if wanted else "messages")
    left = context - prompt
    return wanted or min(default or left, left)


def _sampling(chat: ChatRequest, vocab_size: int) -> SamplingParams:
    _check_bias(chat.logit_bias, vocab_size)
    return SamplingParams(
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=None if chat.top_k is None else min(chat.top_k, vocab_size),
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
        logit_bias=chat.logit_bias,
        top_logprobs=chat.logprobs_wanted,
    )


def _check_bias(logit_bias: dict[int, float], vocab_size: int) -> None:
    for token_id in logit_bias:
        if token_id >= vocab_size:
            rule = f"logit_bias['{token_id}'] is not a token id: the largest one is {vocab_size - 1}"
            raise InvalidRequest(rule, f"logit_bias['{token_id}']")
    banned = sum(bias <= -100 for bias in logit_bias.values())
    if banned == vocab_size:
        raise InvalidRequest("logit_bias bans every token of the vocabulary", "logit_bias")


def _steering(chat: ChatRequest, digests: Mapping[str, str]) -> SteeringSpec | None:
    strengths = _strengths(chat, digests)
    if not strengths:
        return None
    scope, mode = SteeringScope(chat.steering_scope), SteeringMode(chat.steering_mode)
    condition = None
    if when := chat.steering_when:
        condition = SteeringCondition(digests[when.concept], when.above, when.below)
    return SteeringSpec(strengths, scope, mode, condition)


def _strengths(chat: ChatRequest, digests: Mapping[str, str]) -> dict[str, float]:
    """Digest -> strength, without zeros, in an order that does not depend on the order in the request.

    Concepts with the same examples share one digest and count once.
    """
    first: dict[str, str] = {}
    for concept in chat.steering_concepts:
        same = first.setdefault(digests[concept], concept)
        given, other = chat.strength_of(concept), chat.strength_of(same)
        if given != other:
            message = (
                f"steering_strength must be the same number for {same} and {concept}, "
                f"which have the same examples, got {other:g} and {given:g}"
            )
            raise InvalidRequest(message, "steering_strength")
    strengths = {digest: chat.strength_of(first[digest]) for digest in sorted(first)}
    return {digest: strength for digest, strength in strengths.items() if strength}
