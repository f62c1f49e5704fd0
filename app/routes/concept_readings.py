"""POST /steering_concepts/{concept}/read."""

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Request, Response

from app.concepts.readings import EncodedTexts, present_readings
from app.concepts.uses import UsedConcept
from app.errors import ApiError, ErrorCode
from app.gateway import Gateway, GatewayDep
from app.http.auth import caller_of, requires
from app.http.body import read_json
from app.http.openapi import describe
from app.http.streaming import while_connected
from app.models.model import Model
from app.routes.concepts import GivenId
from app.schemas.readings import Readings, ReadRequest
from app.settings import AccessScope

router = APIRouter(tags=["steering concepts"])


@router.post(
    "/steering_concepts/{concept:path}/read",
    operation_id="read_texts",
    dependencies=[requires(AccessScope.CHAT, AccessScope.CONCEPTS)],
    **describe(ReadRequest, Readings, errors=(401, 404, 429, 500)),
)
async def read_texts(request: Request, gateway: GatewayDep, given_id: GivenId) -> Response:
    """Reads how strongly a concept is present at each token of some texts, or of a conversation.

    A reading is the projection of the model's activations on the concept's direction. 0 and 1 are the means
    of the concept's negative and positive examples. Nothing is steered, and nothing is generated. The request
    waits until the concept is trained. Other requests go first. If the client disconnects, the reading ends.

    Errors:
    - 400 `INVALID_REQUEST`: a field breaks a rule, or the model cannot use the concept or read the texts.
    - 400 `CONTEXT_LENGTH_EXCEEDED`: a text or the conversation exceeds the model's context.
    - 400 `MISSING_CAPABILITY`: the model has no suitable chat template.
    - 401 `UNAUTHORIZED`: there is no valid access token, or it has neither the scope `chat` nor `concepts`.
    - 404 `UNKNOWN_MODEL` or `UNKNOWN_STEERING_CONCEPT`.
    - 429 `RATE_LIMITED`: the access token's concurrent requests are used up.
    - 503 `QUEUE_FULL`: too many readings are in progress.
    - 503 `UNAVAILABLE`: the engine is down or the server is stopping.
    """
    async with gateway.admission.track_request(caller_of(request)):
        wanted = await read_json(request, ReadRequest, gateway.settings)
        [used] = gateway.concepts.find([given_id], None)
        model = gateway.models.for_concept(used.concept, wanted.model, caller_of(request))
        encoded = await to_thread.run_sync(_encode, model, wanted)
        async with while_connected(request.receive):
            readings = await _read(gateway, model, used, encoded)
        answer = present_readings(encoded, readings, model.tokenizer)
        return Response(msgspec.json.encode(answer), media_type="application/json")


def _encode(model: Model, wanted: ReadRequest) -> EncodedTexts:
    if wanted.texts:
        return model.texts_to_read.encode_texts(wanted.texts)
    return model.texts_to_read.encode_conversation(*wanted.turns)


async def _read(
    gateway: Gateway, model: Model, used: UsedConcept, encoded: EncodedTexts
) -> list[list[float]]:
    await gateway.concepts.make_usable([used], model.steering)
    try:
        return await model.engine.read(used.concept.digest, encoded.prompts, encoded.texts)
    except ApiError as error:
        if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT:
            raise gateway.concepts.refusal_error([used], model.steering) from None
        raise
