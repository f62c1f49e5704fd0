"""POST /chat/completions."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.concepts.concepts import Concepts
from app.concepts.uses import UsedConcept
from app.errors import ApiError, ErrorCode, InvalidRequest, QueueFull
from app.gateway import Gateway, GatewayDep
from app.http.auth import caller_of, requires
from app.http.body import read_json
from app.http.openapi import describe
from app.http.streaming import Answer, AnswerStream, respond, wait_for_first_token
from app.limits.admission import AdmittedRequest
from app.models.model import Model
from app.schemas.chat import ChatRequest
from app.schemas.completions import ChatCompletion
from app.schemas.messages import Message, has_greeting, without_greeting
from app.settings import AccessScope
from app.telemetry.observation import Observation
from app.text.generation_request import digests_in, generation_request
from app.text.prompts import PromptRenderer
from app.text.transcript import AnswerHeader, ConceptDigests, Transcript
from app.workers.engine import Generation
from inference.interface.requests import GenerationRequest

router = APIRouter(tags=["chat"], dependencies=[requires(AccessScope.CHAT)])

Nice = Annotated[bool, Query(description="Requests that arrive shortly after this one go before it.")]


@router.post(
    "/chat/completions",
    **describe(ChatRequest, ChatCompletion, streams=True, errors=(401, 404, 429, 500)),
)
async def create_chat_completion(request: Request, gateway: GatewayDep, nice: Nice = False) -> Response:
    """Generates the assistant's next message in a conversation.

    The response is one JSON object, or server-sent events if `stream` is true. With `n` above 1 it has
    several independent choices. With `steering_concepts`, the model is steered by these concepts. With
    `steering_readings`, the answer reports how strongly concepts are present. The request waits until all
    concepts that it uses are trained. The query parameter `nice=true` lets other requests go first.

    Errors:
    - 400 `INVALID_REQUEST`: a field breaks a rule, or a steering concept cannot be used with this model.
    - 400 `CONTEXT_LENGTH_EXCEEDED`: the prompt and `max_tokens` together exceed the model's context.
    - 400 `MISSING_CAPABILITY`: the model has no chat template.
    - 401 `UNAUTHORIZED`: there is no valid access token, or it does not have the scope `chat`.
    - 404 `UNKNOWN_MODEL` or `UNKNOWN_STEERING_CONCEPT`.
    - 429 `RATE_LIMITED`: the access token's concurrent requests or tokens per minute are used up.
    - 503 `QUEUE_FULL`: too many requests are waiting, or this one waited too long for its first token.
    - 503 `UNAVAILABLE`: the model's engine is down, or the server is stopping.

    A stream begins with the first token, or after `server.stream_open_seconds` without one. If it fails after
    that, the last event is the error, and no `[DONE]` follows.
    """
    observation: Observation = request.state.observation
    admitted = await gateway.admission.admit(caller_of(request), nice, request.state.reservation)
    try:
        chat = await read_json(request, ChatRequest, gateway.settings)
        model = gateway.models.find(chat.model, caller_of(request))
        observation.model = model.name
        wanted, named = await _prepare(gateway, model, chat, admitted, observation.request_id, nice)
        observation.generation_request = wanted
        if gateway.settings.log.texts:
            observation.messages = [{"role": turn.role, "content": turn.content} for turn in chat.messages]
            observation.answers = [""] * chat.n
        starting = asyncio.create_task(
            _start(gateway, model, wanted, named.needed(wanted), admitted, observation)
        )
        longest_wait = gateway.settings.server.stream_open_seconds if chat.stream else None
        await wait_for_first_token(starting, request.receive, longest_wait)
    except BaseException:
        admitted.end()
        raise
    header = AnswerHeader(
        "chatcmpl-" + observation.request_id, int(time.time()), model.name, model.system_fingerprint
    )
    transcript = Transcript(header, model.tokenizer, wanted, chat.stop, named.digests)
    answer = Answer(observation, starting, transcript, gateway.metrics, admitted)
    if chat.stream:
        ping_seconds = gateway.settings.server.ping_seconds
        return AnswerStream(answer, chat.stream_options.include_usage, ping_seconds)
    return await respond(answer, request.receive)


async def _prepare(
    gateway: Gateway,
    model: Model,
    chat: ChatRequest,
    admitted: AdmittedRequest,
    request_id: str,
    nice: bool,
) -> tuple[GenerationRequest, "_NamedConcepts"]:
    """The request for the engine, and the concepts that the chat names.

    Raises MISSING_CAPABILITY, UNKNOWN_STEERING_CONCEPT, QUEUE_FULL, UNAVAILABLE, RATE_LIMITED,
    CONTEXT_LENGTH_EXCEEDED or INVALID_REQUEST.
    """
    if model.prompts is None:
        message = f"model {model.name} cannot chat: it has no chat template"
        raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model")
    named = _NamedConcepts.find(gateway.concepts, chat)
    default_max_tokens = gateway.settings.limits.default_max_tokens
    await admitted.reserve(model.engine, chat.n, chat.token_limit or default_max_tokens)
    prompt = await _render(model.prompts, chat.messages)
    wanted = generation_request(
        chat,
        prompt,
        named.by_id,
        model.engine.model,
        model.end_token_ids,
        request_id,
        nice,
        default_max_tokens,
    )
    await admitted.reserve_prompt(len(prompt))
    return wanted, named


@dataclass(frozen=True)
class _NamedConcepts:
    """The concepts that a chat names, by field."""

    steering: list[UsedConcept]
    condition: list[UsedConcept]
    readings: list[UsedConcept]

    @staticmethod
    def find(concepts: Concepts, chat: ChatRequest) -> "_NamedConcepts":
        """Raises UNKNOWN_STEERING_CONCEPT."""
        condition = [chat.steering_when.concept] if chat.steering_when else []
        return _NamedConcepts(
            concepts.find(chat.steering_concepts, "steering_concepts"),
            concepts.find(condition, "steering_when"),
            concepts.find(chat.steering_readings, "steering_readings"),
        )

    @property
    def by_id(self) -> dict[str, str]:
        """Id -> digest."""
        return _digests([*self.steering, *self.condition, *self.readings])

    @property
    def digests(self) -> ConceptDigests:
        return ConceptDigests(_digests(self.steering), _digests(self.readings))

    def needed(self, wanted: GenerationRequest) -> list[UsedConcept]:
        """Those that the engine needs for the request: not those of strength 0."""
        needed = digests_in(wanted)
        used = [*self.steering, *self.condition, *self.readings]
        return [use for use in used if use.concept.digest in needed]


def _digests(used: Sequence[UsedConcept]) -> dict[str, str]:
    return {use.concept.id: use.concept.digest for use in used}


async def _render(prompts: PromptRenderer, messages: list[Message]) -> list[int]:
    """The prompt's token ids. Leaves out a greeting of the assistant that the chat template refuses."""
    try:
        return await prompts.render(messages)
    except InvalidRequest:
        if not has_greeting(messages):
            raise
        return await prompts.render(without_greeting(messages))


async def _start(
    gateway: Gateway,
    model: Model,
    wanted: GenerationRequest,
    used: Sequence[UsedConcept],
    admitted: AdmittedRequest,
    observation: Observation,
) -> Generation:
    """Returns with the first token, so that a failure before it can still get its own HTTP status."""
    await gateway.concepts.make_usable(used, model.steering)
    observation.mark_submitted()
    admitted.hand_over()
    generation = await _submit(gateway, model, wanted, used)
    try:
        await _first_token(generation, gateway.settings.limits.max_wait_seconds)
    except BaseException:
        generation.abort()
        raise
    observation.mark_first_token(generation.queue_seconds)
    gateway.metrics.count_first_token(observation)
    return generation


async def _first_token(generation: Generation, seconds: float) -> None:
    """Raises QUEUE_FULL, or the exception that ended the generation before its first token."""
    first = generation.first_events
    await asyncio.wait({first}, timeout=seconds)
    if not first.done():
        raise QueueFull(f"the request waited {seconds:g} seconds for its first token, which is the limit")
    first.result()


async def _submit(
    gateway: Gateway, model: Model, wanted: GenerationRequest, used: Sequence[UsedConcept]
) -> Generation:
    try:
        return await model.engine.submit(wanted)
    except ApiError as error:
        if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT and used:
            raise gateway.concepts.refusal_error(used, model.steering) from None
        raise
