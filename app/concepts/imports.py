"""Makes a concept from the content of a vector file. Knows no HTTP."""

import time
from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError
from pydantic_core import from_json

from app.concepts.concept import Concept, Example, digest_of, is_id, names_other_content
from app.concepts.vectors.formats import VectorFile, read_vector_file
from app.concepts.vectors.imported import ImportedVectors, ServedModel
from app.concepts.vectors.importing import import_vectors
from app.errors import InvalidRequest
from app.schemas.concepts import MAX_DESCRIPTION, ConceptRequest, full_id
from app.schemas.faults import invalid_request
from app.settings import Settings


def import_concept(
    content: bytes,
    name: str | None,
    description: str | None,
    models: Sequence[ServedModel],
    settings: Settings,
) -> Concept:
    """A concept for the first of these models that the vectors fit.

    Its name, description and examples may be in the file's metadata.
    Can take seconds. Raises InvalidRequest.
    """
    file = read_vector_file(content)
    given = name or file.metadata.get("id") or file.metadata.get("name")
    examples = _examples(file, settings)
    concept = Concept(
        _id(given),
        _description(description, file),
        examples,
        int(time.time()),
        vectors=_vectors(file, models, digest_of(examples) if examples else ""),
    )
    if name is None and names_other_content(concept):
        # The file is of a concept without a name. Its id is the digest of examples that are not here.
        return replace(concept, id=full_id(concept.digest))
    return concept


def _vectors(file: VectorFile, models: Sequence[ServedModel], examples_digest: str) -> ImportedVectors:
    """Raises the error for the first model if the file fits none."""
    errors = []
    for model in models:
        try:
            return import_vectors(file, model, examples_digest)
        except InvalidRequest as error:
            errors.append(error)
    raise errors[0]


def _id(given: str | None) -> str:
    if given is None:
        raise InvalidRequest("name is required, because the file carries none", "name")
    if not is_id(full_id(given)):
        raise InvalidRequest("name is required, because the one in the file is not valid", "name")
    return full_id(given)


def _description(given: str | None, file: VectorFile) -> str:
    description = file.metadata.get("description", "") if given is None else given
    if len(description) > MAX_DESCRIPTION:
        message = f"description must have at most {MAX_DESCRIPTION} characters; the one in the file has more"
        raise InvalidRequest(message, "description")
    return description


def _examples(file: VectorFile, settings: Settings) -> tuple[Example, ...]:
    """The examples in the metadata, by the same rules as in POST /steering_concepts."""
    if "examples" not in file.metadata:
        return ()
    try:
        given = from_json(file.metadata["examples"], allow_inf_nan=False)
        wanted = ConceptRequest.model_validate({"examples": given}, context=settings)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False)) from None
    except ValueError as error:
        raise InvalidRequest(
            f"examples in the file's metadata is not valid JSON: {error}", "examples"
        ) from None
    return tuple(Example(pair.positive, pair.negative, pair.prompt) for pair in wanted.examples)
