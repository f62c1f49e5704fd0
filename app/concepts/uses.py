"""The concepts that a request uses, and the errors for those that it cannot use."""

from dataclasses import dataclass

from app.concepts.concept import Concept, is_id
from app.errors import SERVER_FAULTS, ApiError, ErrorCode, InvalidRequest, shorten


@dataclass(frozen=True)
class UsedConcept:
    """A concept that a request uses."""

    concept: Concept
    param: str | None
    """The field of the request that names it, for error messages. None: its path names it."""


def unknown(concept_id: str, param: str | None = None) -> ApiError:
    shown = concept_id if is_id(concept_id) else shorten(concept_id)
    message = f"steering concept {shown} is unknown; GET /steering_concepts lists all concepts"
    return ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, message, param)


def deleted(concept: Concept) -> ApiError:
    return ApiError(ErrorCode.CONFLICT, f"{concept.id} was deleted while it was being created")


def taken(concept: Concept) -> ApiError:
    message = f"{concept.id} already exists with other examples or vectors"
    return ApiError(ErrorCode.CONFLICT, message, "name")


def unusable(use: UsedConcept, error: ApiError) -> ApiError:
    if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT:
        return unknown(use.concept.id, use.param)
    if error.code in SERVER_FAULTS:
        return error
    return InvalidRequest(f"{use.concept.id} cannot be used with this model: {error.message}", use.param)
