"""POST /chat/completions."""

import time

from fastapi import APIRouter, Request, Response

from app.body import read_json
from app.completions import Heading, Transcript
from app.errors import ApiError, ErrorCode
from app.gateway import Gateway, GatewayDep, RequestId
from app.openapi import describe
from app.schemas.chat import ChatRequest
from app.schemas.completions import ChatCompletion
from app.streaming import Answer, AnswerStream, respond
from app.validation import check_limits, check_model, generation_request
from inference.protocol import GenerationRequest

router = APIRouter(tags=["chat"])


@router.post(
    "/chat/completions", **describe(ChatRequest, ChatCompletion, streams=True, errors=(401, 404, 500, 503))
)
async def create_chat_completion(
    request: Request, gateway: GatewayDep, request_id: RequestId, nice: bool = False
) -> Response:
    """Continues a conversation. `nice` lets concurrent requests go first."""
    chat = await read_json(request, ChatRequest)
    admitted = await _prepare(gateway, chat, request_id, nice)
    heading = Heading(
        "chatcmpl-" + request_id, int(time.time()), gateway.settings.model.name, gateway.system_fingerprint
    )
    transcript = Transcript(heading, gateway.tokenizer, admitted, chat.stop)
    generation = await gateway.engine.submit(admitted)
    answer = Answer(request_id, generation, transcript, gateway.metrics)
    if chat.stream:
        return AnswerStream(answer, chat.stream_options.include_usage, gateway.settings.server.drain_seconds)
    return await respond(answer, request.receive)


async def _prepare(gateway: Gateway, chat: ChatRequest, request_id: str, nice: bool) -> GenerationRequest:
    check_model(chat.model, gateway.settings.model.name)
    if gateway.prompts is None:
        message = f"model {chat.model} cannot chat: it has no chat template"
        raise ApiError(ErrorCode.MISSING_CAPABILITY, message, "model")
    check_limits(chat, gateway.settings.limits)
    prompt = await gateway.prompts.render(chat.messages)
    return generation_request(chat, prompt, gateway.engine.model, request_id, nice)
