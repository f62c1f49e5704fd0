"""POST /chat/completions."""

import time
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from app.auth import requires
from app.body import read_json
from app.completions import Heading, Transcript
from app.engine import Generation
from app.errors import ApiError, ErrorCode
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
    "/chat/completions", **describe(ChatRequest, ChatCompletion, streams=True, errors=(401, 404, 500, 503))
)
async def create_chat_completion(
    request: Request, gateway: GatewayDep, request_id: RequestId, nice: bool = False
) -> Response:
    """Continues a conversation. `nice` lets concurrent requests go first."""
    chat = await read_json(request, ChatRequest)
    admitted, concepts = await _prepare(gateway, chat, request_id, nice)
    if admitted.steering:
        async with while_connected(request.receive):
            await gateway.concepts.make_usable(concepts)
    heading = Heading(
        "chatcmpl-" + request_id, int(time.time()), gateway.settings.model.name, gateway.system_fingerprint
    )
    transcript = Transcript(heading, gateway.tokenizer, admitted, chat.stop)
    generation = await _submit(gateway, admitted, concepts)
    answer = Answer(request_id, generation, transcript, gateway.metrics)
    if chat.stream:
        return AnswerStream(answer, chat.stream_options.include_usage)
    return await respond(answer, request.receive)


async def _prepare(
    gateway: Gateway, chat: ChatRequest, request_id: str, nice: bool
) -> tuple[GenerationRequest, list[Concept]]:
    """What the engine is to do, and the concepts that it needs for that."""
    check_model(chat.model, gateway.settings.model.name)
    if gateway.prompts is None:
        message = f"model {chat.model} cannot chat: it has no chat template"
        raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model")
    check_limits(chat, gateway.settings.limits)
    concepts = gateway.concepts.find(chat.steering_concepts)
    prompt = await gateway.prompts.render(chat.messages)
    model = gateway.engine.model
    return generation_request(chat, prompt, concepts, model, request_id, nice), concepts


async def _submit(gateway: Gateway, admitted: GenerationRequest, concepts: Sequence[Concept]) -> Generation:
    try:
        return await gateway.engine.submit(admitted)
    except ApiError as error:
        if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT and concepts:
            raise gateway.concepts.refused(concepts) from None
        raise
