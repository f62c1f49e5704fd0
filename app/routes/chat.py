"""POST /chat/completions."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.concepts.concept import Concept
from app.errors import ApiError, ErrorCode, QueueFull
from app.gateway import Gateway, GatewayDep
from app.http.auth import caller_of, requires
from app.http.body import read_json
from app.http.openapi import describe
from app.http.streaming import Answer, AnswerStream, respond, while_connected
from app.limits.admission import AdmittedRequest
from app.schemas.chat import ChatRequest
from app.schemas.completions import ChatCompletion
from app.settings import AccessScope
from app.telemetry.observation import Observation
from app.text.generation_request import check_model, generation_request
from app.text.transcript import Heading, Transcript
from app.workers.engine import Generation
from inference.interface.protocol import GenerationRequest

router = APIRouter(tags=["chat"], dependencies=[requires(AccessScope.CHAT)])


@router.post(
    "/chat/completions",
    **describe(ChatRequest, ChatCompletion, streams=True, errors=(401, 404, 429, 500)),
)
async def create_chat_completion(request: Request, gateway: GatewayDep, nice: bool = False) -> Response:
    """Continues a conversation. `nice` lets concurrent requests go first."""
    seen: Observation = request.state.observation
    admitted = gateway.admission.admit(caller_of(request), nice, request.state.reservation)
    try:
        chat = await read_json(request, ChatRequest, gateway.settings.limits)
        asked, concepts = await _prepare(gateway, chat, admitted, seen.request_id, nice)
        seen.asked = asked
        if gateway.settings.log.texts:
            seen.messages = [{"role": turn.role, "content": turn.content} for turn in chat.messages]
            seen.answers = [""] * chat.n
        if asked.steering:
            async with while_connected(request.receive):
                await gateway.concepts.make_usable(concepts)
        seen.queue()
        generation = await _start(gateway, asked, concepts, admitted, request.receive)
        seen.begin(generation.queue_seconds)
    except BaseException:
        admitted.end()
        raise
    heading = Heading(
        "chatcmpl-" + seen.request_id,
        int(time.time()),
        gateway.settings.model.name,
        gateway.system_fingerprint,
    )
    transcript = Transcript(heading, gateway.tokenizer, asked, chat.stop)
    answer = Answer(seen, generation, transcript, gateway.metrics, admitted)
    if chat.stream:
        return AnswerStream(answer, chat.stream_options.include_usage)
    return await respond(answer, request.receive)


async def _prepare(
    gateway: Gateway, chat: ChatRequest, admitted: AdmittedRequest, request_id: str, nice: bool
) -> tuple[GenerationRequest, list[Concept]]:
    """What the engine is to do, and the concepts that it needs for that."""
    check_model(chat.model, gateway.settings.model.name)
    if gateway.prompts is None:
        message = f"model {chat.model} cannot chat: it has no chat template"
        raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model")
    concepts = gateway.concepts.find(chat.steering_concepts)
    admitted.reserve(chat.n, chat.token_limit)
    prompt = await gateway.prompts.render(chat.messages)
    digests = [concept.digest for concept in concepts]
    asked = generation_request(chat, prompt, digests, gateway.engine.model, request_id, nice)
    admitted.reserve_prompt(len(prompt))
    return asked, concepts


async def _start(
    gateway: Gateway,
    asked: GenerationRequest,
    concepts: Sequence[Concept],
    admitted: AdmittedRequest,
    receive: Receive,
) -> Generation:
    """Returns when the first token is there, so that whatever fails before that gets a status of its own."""
    admitted.hand_over()
    generation = await _submit(gateway, asked, concepts)
    try:
        await _wait_for_begin(generation, gateway.settings.limits.max_wait_seconds, receive)
    except BaseException:
        generation.abort()
        raise
    return generation


async def _wait_for_begin(generation: Generation, seconds: float, receive: Receive) -> None:
    """Raises QUEUE_FULL, ClientDisconnect, and what ended the generation before it began."""
    left = asyncio.ensure_future(receive())  # What comes after the body is the end.
    awaited: set[asyncio.Future[Any]] = {generation.begun, left}
    try:
        await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
    if generation.begun.done():
        generation.begun.result()
    elif left.done():
        raise ClientDisconnect
    else:
        raise QueueFull(f"the request has waited for {seconds:g} seconds, which is the limit")


async def _submit(gateway: Gateway, asked: GenerationRequest, concepts: Sequence[Concept]) -> Generation:
    try:
        return await gateway.engine.submit(asked)
    except ApiError as error:
        if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT and concepts:
            raise gateway.concepts.refused(concepts) from None
        raise
