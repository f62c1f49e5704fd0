"""The routes by which steering concepts are made, looked at and deleted."""

import time
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from app.concepts.concept import Concept, Example, digest_of
from app.gateway import GatewayDep
from app.http.auth import caller_of, requires
from app.http.body import read_json
from app.http.openapi import describe
from app.schemas.concepts import ConceptDetail, ConceptList, ConceptRequest, full_id
from app.settings import AccessScope
from app.text.generation_request import check_model

router = APIRouter(tags=["steering concepts"])

_MAKES_CONCEPTS = requires(AccessScope.CONCEPTS)
_USES_CONCEPTS = requires(AccessScope.CHAT, AccessScope.CONCEPTS)


async def _given_id(request: Request, concept: str) -> str:
    """The router drops a newline at the end, with which it is no id."""
    return concept + "\n" if request.scope["path"].endswith("\n") else concept


# What may be done with what was created.
_LINKS = {
    name: {"operationId": name, "parameters": {"concept": "$response.body#/id"}}
    for name in ("read_concept", "delete_concept")
}

GivenId = Annotated[str, Depends(_given_id)]


@router.post(
    "/steering_concepts",
    dependencies=[_MAKES_CONCEPTS],
    **describe(ConceptRequest, ConceptDetail, status=201, links=_LINKS, errors=(401, 404, 409, 429, 500)),
)
async def create_concept(request: Request, gateway: GatewayDep) -> Response:
    """Makes a concept from pairs of texts, measures it, and keeps it, which takes seconds to minutes.

    The same examples (and name) a second time give the same concept.
    """
    with gateway.admission.counting(caller_of(request)):
        asked = await read_json(request, ConceptRequest, gateway.settings.limits)
        if asked.model is not None:
            check_model(asked.model, gateway.settings.model.name)
        return _json(await gateway.concepts.create(_concept(asked)), status=201)


@router.get("/steering_concepts", dependencies=[_USES_CONCEPTS], **describe(answer=ConceptList))
async def list_concepts(gateway: GatewayDep) -> Response:
    """All concepts, those in creation among them, and the files that hold none which can be used."""
    return _json(gateway.concepts.overview())


@router.get(
    "/steering_concepts/{concept:path}",
    operation_id="read_concept",
    dependencies=[_USES_CONCEPTS],
    **describe(answer=ConceptDetail, errors=(401, 404, 500)),
)
async def read_concept(gateway: GatewayDep, given_id: GivenId) -> Response:
    """One concept, with what it was measured to do. Its id may be given with or without `_worker/`."""
    return _json(gateway.concepts.describe(given_id))


@router.delete(
    "/steering_concepts/{concept:path}",
    operation_id="delete_concept",
    dependencies=[_MAKES_CONCEPTS],
    **describe(answer=None, status=204, errors=(401, 404, 409, 500)),
)
async def delete_concept(gateway: GatewayDep, given_id: GivenId) -> Response:
    """Deletes a created concept. Answers that it steers already are not disturbed."""
    await gateway.concepts.delete(given_id)
    return Response(status_code=204)


def _concept(asked: ConceptRequest) -> Concept:
    examples = tuple(Example(pair.positive, pair.negative) for pair in asked.examples)
    name = asked.name or digest_of(examples)
    return Concept(full_id(name), asked.description, examples, int(time.time()))


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
