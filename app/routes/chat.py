"""POST /chat/completions."""

import time
from collections.abc import Sequence

import anyio
from fastapi import APIRouter, Request, Response
from starlette.types import Receive

from app.admission import Visit
from app.auth import CallerDep, requires
from app.body import read_json
from app.completions import Heading, Transcript
from app.engine import Generation
from app.errors import ApiError, ErrorCode, QueueFull
from app.gateway import Gateway, GatewayDep, RequestId
from app.openapi import describe
from app.schemas.chat import ChatRequest
from app.schemas.completions import ChatCompletion
from app.settings import TokenScope
from app.streaming import Answer, AnswerStream, respond, while_connected
from app.validation import check_limits, check_model, generation_request
from inference.protocol import GenerationRequest
from inference.steering.concepts import Concept

router = APIRouter(tags=["chat"], dependencies=[requires(TokenScope.CHAT)])


@router.post(
    "/chat/completions",
    **describe(ChatRequest, ChatCompletion, streams=True, errors=(401, 404, 429, 500, 503)),
)
async def create_chat_completion(
    request: Request, gateway: GatewayDep, request_id: RequestId, caller: CallerDep, nice: bool = False
) -> Response:
    """Continues a conversation. `nice` lets concurrent requests go first."""
    visit = gateway.admission.admit(caller, nice)
    try:
        chat = await read_json(request, ChatRequest)
        asked, concepts = await _prepare(gateway, chat, visit, request_id, nice)
        if asked.steering:
            async with while_connected(request.receive):
                await gateway.concepts.make_usable(concepts)
        generation = await _start(gateway, asked, concepts, visit, request.receive)
    except BaseException:
        visit.end()
        raise
    heading = Heading(
        "chatcmpl-" + request_id, int(time.time()), gateway.settings.model.name, gateway.system_fingerprint
    )
    transcript = Transcript(heading, gateway.tokenizer, asked, chat.stop)
    answer = Answer(request_id, generation, transcript, gateway.metrics, visit)
    if chat.stream:
        return AnswerStream(answer, chat.stream_options.include_usage)
    return await respond(answer, request.receive)


async def _prepare(
    gateway: Gateway, chat: ChatRequest, visit: Visit, request_id: str, nice: bool
) -> tuple[GenerationRequest, list[Concept]]:
    """What the engine is to do, and the concepts that it needs for that."""
    check_model(chat.model, gateway.settings.model.name)
    if gateway.prompts is None:
        message = f"model {chat.model} cannot chat: it has no chat template"
        raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model")
    check_limits(chat, gateway.settings.limits)
    concepts = gateway.concepts.find(chat.steering_concepts)
    visit.reserve(chat.n, chat.token_limit)
    prompt = await gateway.prompts.render(chat.messages)
    asked = generation_request(chat, prompt, concepts, gateway.engine.model, request_id, nice)
    visit.reserve_prompt(len(prompt))
    return asked, concepts


async def _start(
    gateway: Gateway, asked: GenerationRequest, concepts: Sequence[Concept], visit: Visit, receive: Receive
) -> Generation:
    """Returns when the first token is there, so that whatever fails before that gets a status of its own."""
    visit.hand_over()
    generation = await _submit(gateway, asked, concepts)
    seconds = gateway.settings.limits.max_wait_seconds
    try:
        with anyio.fail_after(seconds):
            async with while_connected(receive):
                await generation.begun()
    except TimeoutError:
        generation.abort()
        raise QueueFull(f"the request has waited for {seconds:g} seconds, which is the limit") from None
    except BaseException:
        generation.abort()
        raise
    return generation


async def _submit(gateway: Gateway, asked: GenerationRequest, concepts: Sequence[Concept]) -> Generation:
    try:
        return await gateway.engine.submit(asked)
    except ApiError as error:
        if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT and concepts:
            raise gateway.concepts.refused(concepts) from None
        raise
