"""The routes that create, list, read and delete steering concepts."""

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from app.concepts.concept import Concept, Example, digest_of
from app.concepts.steerable import SteerableModel
from app.errors import ApiError, ErrorCode
from app.gateway import Gateway, GatewayDep
from app.http.auth import caller_of, check_scope, requires
from app.http.body import read_json
from app.http.openapi import describe
from app.schemas.concepts import ConceptDetail, ConceptList, ConceptRequest, full_id
from app.settings import AccessScope, AccessToken

router = APIRouter(tags=["steering concepts"])

_MAKES_CONCEPTS = requires(AccessScope.CONCEPTS)
_USES_CONCEPTS = requires(AccessScope.CHAT, AccessScope.CONCEPTS)


async def _given_id(
    request: Request,
    concept: Annotated[str, Path(description="The concept's id, with or without `_worker/`.")],
) -> str:
    """The id from the path. The router drops a newline at its end; with it back, the id is not valid."""
    return concept + "\n" if request.scope["path"].endswith("\n") else concept


# OpenAPI links: the operations that take a created concept's id.
LINKS = {
    name: {"operationId": name, "parameters": {"concept": "$response.body#/id"}}
    for name in ("read_concept", "delete_concept", "export_vectors", "read_texts")
}

GivenId = Annotated[str, Depends(_given_id)]
ModelName = Annotated[
    str | None,
    Query(description="The name of a model, as `GET /models` lists it. Default: all models of the server."),
]
WithExamples = Annotated[bool, Query(description="Whether the answer also has the concept's examples.")]


@router.post(
    "/steering_concepts",
    dependencies=[_MAKES_CONCEPTS],
    **describe(ConceptRequest, ConceptDetail, status=201, links=LINKS, errors=(401, 404, 409, 429, 500)),
)
async def create_concept(request: Request, gateway: GatewayDep) -> Response:
    """Creates a steering concept from pairs of texts: one that shows the concept, and one that does not.

    The server trains the concept on each model, or on the one that `model` names, measures its effect, and
    stores it. It is enough if one model can be steered by it. This takes seconds to
    minutes. The response is the concept with its report. If the client disconnects, the creation goes on;
    `GET /steering_concepts/{concept}` shows its progress. A request with the same name and examples as an
    existing concept returns that concept.

    Errors:
    - 400 `INVALID_REQUEST`: a field breaks a rule, or the model cannot be trained on these examples.
    - 400 `MISSING_CAPABILITY`: the model cannot be steered, because it has no suitable chat template.
    - 401 `UNAUTHORIZED`: there is no valid access token, or it does not have the scope `concepts`.
    - 404 `UNKNOWN_MODEL`: there is no such model, or the access token does not permit it.
    - 409 `CONFLICT`: the name is taken by other examples, there are too many concepts, or the concept was
      deleted during its creation.
    - 429 `RATE_LIMITED`: the access token's concurrent requests are used up.
    - 503 `QUEUE_FULL`: too many concepts are being created.
    - 503 `UNAVAILABLE`: the engine is down, a model that may be able to use the concept is not loaded yet, or
      the concept cannot be stored.
    """
    async with gateway.admission.track_request(caller_of(request)):
        wanted = await read_json(request, ConceptRequest, gateway.settings)
        models = [each.steering for each in gateway.models.chosen(wanted.model, caller_of(request))]
        try:
            created = await gateway.concepts.create(_concept(wanted), models)
        except ApiError as error:
            if error.code is ErrorCode.MISSING_CAPABILITY and wanted.model is None:
                gateway.models.check_loaded(caller_of(request))
            raise
        return _json(created, status=201)


@router.get(
    "/steering_concepts",
    dependencies=[_USES_CONCEPTS],
    **describe(answer=ConceptList, errors=(400, 401, 404, 500)),
)
async def list_concepts(request: Request, gateway: GatewayDep, model: ModelName = None) -> Response:
    """Lists all steering concepts, including those that are being created.

    Each entry has the concept's `state` and `progress`, but no report. If the server has several models, it
    has them for each, unless the query `model` names one. `problems` lists the concept files
    that cannot be used, with the reason. Returns 404 `UNKNOWN_MODEL` if the query names no known model, and
    401 `UNAUTHORIZED` without a valid access token that has the scope `chat` or `concepts`.
    """
    return _json(gateway.concepts.overview(_described(gateway, model, caller_of(request))))


@router.get(
    "/steering_concepts/{concept:path}",
    operation_id="read_concept",
    dependencies=[_USES_CONCEPTS],
    **describe(answer=ConceptDetail, errors=(400, 401, 404, 500)),
)
async def read_concept(
    request: Request,
    gateway: GatewayDep,
    given_id: GivenId,
    examples: WithExamples = False,
    model: ModelName = None,
) -> Response:
    """Returns one steering concept, with the report of its measured effect, or the error if it failed.

    If the server has several models, it has a report for each, unless the query `model` names one. The id may
    be given with or without the prefix `_worker/`. The query `examples=true` adds the
    examples, and needs the scope `concepts`. Returns 404 `UNKNOWN_STEERING_CONCEPT` if there is no such
    concept, or `UNKNOWN_MODEL`, and 401 `UNAUTHORIZED` without a valid access token that has the scope `chat`
    or `concepts`.
    """
    if examples:
        check_scope(request, AccessScope.CONCEPTS)
    models = _described(gateway, model, caller_of(request))
    return _json(gateway.concepts.describe(given_id, models, examples))


@router.delete(
    "/steering_concepts/{concept:path}",
    operation_id="delete_concept",
    dependencies=[_MAKES_CONCEPTS],
    **describe(answer=None, status=204, errors=(401, 404, 409, 500)),
)
async def delete_concept(gateway: GatewayDep, given_id: GivenId) -> Response:
    """Deletes a steering concept, and returns 204 without a body.

    Chat requests that the concept steers already go on. Chat requests that wait for it get 404
    `UNKNOWN_STEERING_CONCEPT`. If the concept is being created, its creation ends with 409 `CONFLICT`.

    Errors:
    - 401 `UNAUTHORIZED`: there is no valid access token, or it does not have the scope `concepts`.
    - 404 `UNKNOWN_STEERING_CONCEPT`: there is no such concept.
    - 409 `CONFLICT`: the concept comes with the server and cannot be deleted.
    - 503 `UNAVAILABLE`: the concept's file cannot be deleted.
    """
    await gateway.concepts.delete(given_id)
    return Response(status_code=204)


def _concept(wanted: ConceptRequest) -> Concept:
    examples = tuple(Example(pair.positive, pair.negative, pair.prompt) for pair in wanted.examples)
    name = wanted.name or digest_of(examples)
    return Concept(full_id(name), wanted.description, examples, int(time.time()))


def _described(gateway: Gateway, model: str | None, caller: AccessToken | None) -> list[SteerableModel]:
    """The models to describe a concept for: the named one, or all that the caller may use, perhaps none."""
    if model is not None:
        return [gateway.models.find(model, caller).steering]
    return [permitted.steering for permitted in gateway.models.permitted(caller)]


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
