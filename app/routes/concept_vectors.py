"""The routes that export and import steering vectors."""

from typing import Annotated

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from app.concepts.concept import Concept
from app.concepts.imports import import_concept
from app.concepts.uses import UsedConcept
from app.concepts.vectors.tiller_file import Provenance, write_tiller_file
from app.errors import ApiError, ErrorCode
from app.gateway import Gateway, GatewayDep
from app.http.auth import caller_of, requires
from app.http.body import read_file
from app.http.openapi import describe, describe_file
from app.models.model import Model
from app.routes.concepts import LINKS, GivenId, ModelName, read_concept
from app.schemas.concepts import ID_PATTERN, ID_PREFIX, MAX_DESCRIPTION, ConceptDetail
from app.settings import AccessScope
from inference.interface.concepts import VectorsResult

router = APIRouter(tags=["steering concepts"])

IMPORT_PATH = "/steering_concepts/import"

_FILE = "application/octet-stream"

Name = Annotated[
    str | None,
    Query(
        pattern=ID_PATTERN,
        description="The concept's name, with or without `_worker/`. A file that Tiller has exported carries "
        "one; otherwise it is required.",
    ),
]
OwnModel = Annotated[
    str | None,
    Query(description="The name of the model that the vectors are for. Default: the first one that fits."),
]
Description = Annotated[
    str | None,
    Query(max_length=MAX_DESCRIPTION, description="A text for people. Default: the one in the file."),
]


@router.get(
    "/steering_concepts/{concept:path}/vectors",
    operation_id="export_vectors",
    response_class=Response,
    dependencies=[requires(AccessScope.CHAT, AccessScope.CONCEPTS)],
    **describe(answer=bytes, media_type=_FILE, errors=(400, 401, 404, 429, 500)),
)
async def export_vectors(
    request: Request, gateway: GatewayDep, given_id: GivenId, model: ModelName = None
) -> Response:
    """Returns the concept's steering vectors on a model, as a safetensors file.

    The file has a tensor `direction.N` of unit length for each steered decoder block N. Its metadata says how
    much of it strength 1 adds, which model the vectors belong to, and what they were made from. The request
    waits until the concept is trained.

    Errors:
    - 400 `INVALID_REQUEST` or `MISSING_CAPABILITY`: the concept cannot be used with this model.
    - 401 `UNAUTHORIZED`: there is no valid access token, or it has neither the scope `chat` nor `concepts`.
    - 404 `UNKNOWN_STEERING_CONCEPT` or `UNKNOWN_MODEL`: there is no such concept, or no such model.
    - 429 `RATE_LIMITED`: the access token's concurrent requests are used up.
    - 503 `UNAVAILABLE`: the engine is down or the server is stopping.
    """
    if given_id == ID_PREFIX[:-1]:  # the path is that of a concept called "vectors"
        return await read_concept(request, gateway, f"{given_id}/vectors", model=model)
    async with gateway.admission.track_request(caller_of(request)):
        [used] = gateway.concepts.find([given_id], None)
        chosen = gateway.models.for_concept(used.concept, model, caller_of(request))
        result = await _export(gateway, chosen, used)
        content = write_tiller_file(result, _provenance(used.concept), chosen.steering.identity)
    name = used.concept.id.removeprefix(ID_PREFIX)
    disposition = f'attachment; filename="{name}.safetensors"'
    return Response(content, media_type=_FILE, headers={"Content-Disposition": disposition})


async def _export(gateway: Gateway, model: Model, used: UsedConcept) -> VectorsResult:
    await gateway.concepts.make_usable([used], model.steering, measured=True)
    try:
        return await model.engine.export(used.concept.digest)
    except ApiError as error:
        if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT:
            raise gateway.concepts.refusal_error([used], model.steering) from None
        raise


def _provenance(concept: Concept) -> Provenance:
    imported = concept.vectors
    return Provenance(
        id=concept.id,
        description=concept.description,
        examples_digest=imported.record.given.pairs_digest if imported else concept.digest,
        num_examples=len(concept.examples),
        created=concept.created,
    )


@router.post(
    IMPORT_PATH,
    operation_id="import_vectors",
    dependencies=[requires(AccessScope.CONCEPTS)],
    **describe_file(ConceptDetail, status=201, links=LINKS, errors=(401, 404, 409, 429, 500)),
)
async def import_vectors(
    request: Request,
    gateway: GatewayDep,
    name: Name = None,
    description: Description = None,
    model: OwnModel = None,
) -> Response:
    """Creates a steering concept from a file with vectors, which is the request's body.

    The file is safetensors, or a GGUF control vector as llama.cpp, repeng and EasySteer write it. It has a
    tensor `direction.N` for each decoder block N. Strength 1 adds exactly these vectors; a file that Tiller
    has exported keeps its own scale. Metadata `examples` in a safetensors file, a JSON array like that of
    `POST /steering_concepts`, serves to measure the vectors; without it, nothing is measured. The concept
    belongs to the model that `model` names, or to the first one that the file fits. It survives a restart.

    Errors:
    - 400 `INVALID_REQUEST`: the file is not valid or does not fit the model, or a parameter breaks a rule.
    - 400 `MISSING_CAPABILITY`: the model cannot be steered, because it has no suitable chat template.
    - 401 `UNAUTHORIZED`: there is no valid access token, or it does not have the scope `concepts`.
    - 404 `UNKNOWN_MODEL`: there is no such model.
    - 409 `CONFLICT`: the name is taken, there are too many concepts, or the concept was deleted meanwhile.
    - 413 `PAYLOAD_TOO_LARGE`: the file exceeds `limits.max_vector_bytes`.
    - 429 `RATE_LIMITED`: the access token's concurrent requests are used up.
    - 503 `QUEUE_FULL`: too many concepts are being created.
    - 503 `UNAVAILABLE`: the engine is down, or the concept cannot be stored.
    """
    async with gateway.admission.track_request(caller_of(request)):
        content = await read_file(request)
        models = gateway.models.chosen(model, caller_of(request))
        served = [each.steering.identity for each in models]
        concept = await to_thread.run_sync(
            import_concept, content, name, description, served, gateway.settings
        )
        owners = [each.steering for each in models if each.steering.trainings.accepts(concept)]
        detail = await gateway.concepts.create(concept, owners)
        return Response(msgspec.json.encode(detail), 201, media_type="application/json")
