"""The OpenAPI document. The routes read their bodies themselves, so what FastAPI cannot see is told here."""

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.errors import ErrorCode
from app.http.errors import STATUS
from app.schemas.base import RequestModel
from app.schemas.chat import ChatRequest
from app.schemas.completions import ChatChunk, ChatCompletion
from app.schemas.concepts import ConceptDetail, ConceptList, ConceptRequest
from app.schemas.models import AvailableModel, ModelCard, ModelList, ModelSetting
from app.schemas.operations import Health
from app.schemas.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from app.settings import Settings

_BODIES: tuple[type[RequestModel], ...] = (
    *(ChatRequest, ConceptRequest),
    *(TokenizeRequest, DetokenizeRequest),
)
_ANSWERS = (
    *(ChatCompletion, ChatChunk),
    *(ConceptDetail, ConceptList),
    *(ModelCard, ModelList, AvailableModel, ModelSetting),
    *(Tokenized, Detokenized, Health),
)

_ERRORS_OF_CONNECTIONS = (408, 431, 503)
"""What any route's caller may get: slow or large headers, too many connections."""

_CHUNK = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ChatChunk", "Error")]},
}
_EVENT: dict[str, Any] = {
    "type": "object",
    "description": "With `stream`. One event: a line of `data: ` and JSON. `[DONE]` is the last one, "
    "unless that is an error.",
    "properties": {"data": {"anyOf": [{"const": "[DONE]"}, _CHUNK]}},
    "required": ["data"],
}


def describe(
    body: type[RequestModel] | None = None,
    answer: Any = str,
    *,
    status: int = 200,
    media_type: str = "application/json",
    streams: bool = False,
    links: Mapping[str, Any] | None = None,
    errors: tuple[int, ...] = (401, 500),
) -> dict[str, Any]:
    """What a route's decorator tells of it. A body adds the errors that reading it can bring.

    `answer` is the type of what comes with `status`; None: nothing does.
    """
    content = {} if answer is None else {media_type: {"schema": _schema(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    extra: dict[str, Any] = {} if 401 in errors else {"security": []}
    if body:
        errors += (400, 413, 415)
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    success = {"description": "The answer", "content": content} | ({"links": links} if links else {})
    responses: dict[int, Any] = {status: success}
    responses |= {error: _error_response(error) for error in sorted(errors + _ERRORS_OF_CONNECTIONS)}
    return {"status_code": status, "openapi_extra": extra, "responses": responses}


def build_openapi(app: FastAPI, settings: Settings, vocab_size: int) -> dict[str, Any]:
    """`settings`: whose limits the server keeps to; `vocab_size`: of its tokenizer."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=[{"url": "/"}, {"url": "/v1", "description": "Every route is served here as well."}],
    )
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own; a request that breaks a rule gets 400
    template = "#/components/schemas/{}"
    _, bodies = models_json_schema(
        [(body, "validation") for body in _BODIES], ref_template=template.format("{model}")
    )
    _add_limits(bodies["$defs"], settings, vocab_size)
    _, answers = msgspec.json.schema_components(_ANSWERS, ref_template=template.format("{name}"))
    document["components"] = {
        "schemas": bodies["$defs"] | answers | {"Error": _error_schema()},
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
    }
    document["security"] = [{"bearer": []}]
    return document


def _add_limits(schemas: dict[str, Any], settings: Settings, vocab_size: int) -> None:
    limits = settings.limits
    chat = schemas["ChatRequest"]["properties"]
    _narrow(chat["messages"], maxItems=limits.max_messages)
    _narrow(chat["n"], maximum=limits.max_n)
    _narrow(chat["logit_bias"], maxProperties=limits.max_logit_bias)
    _narrow(schemas["ConceptRequest"]["properties"]["examples"], maxItems=limits.max_examples)
    for text in schemas["PairedExample"]["properties"].values():
        _narrow(text, maxLength=limits.max_example_characters)
    _narrow(schemas["DetokenizeRequest"]["properties"]["token_ids"]["items"], maximum=vocab_size - 1)
    for body in _BODIES:
        _narrow(schemas[body.__name__]["properties"]["model"], examples=[settings.model.name])


def _narrow(field: dict[str, Any], **constraints: object) -> None:
    """Of a field that may be null as well, the first alternative."""
    (field["anyOf"][0] if "anyOf" in field else field).update(constraints)


def _schema(answer: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([answer], ref_template="#/components/schemas/{name}")
    return schema


def _error_response(status: int) -> dict[str, Any]:
    codes = [code.value for code in ErrorCode if STATUS[code] == status]
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": " or ".join(codes), "content": content}


def _error_schema() -> dict[str, Any]:
    code = {"type": "string", "enum": [code.value for code in ErrorCode]}
    error = {
        "message": {"type": "string"},
        "type": {"type": "string"},
        "param": {"type": ["string", "null"], "description": "The field at fault."},
        "code": code,
    }
    fields = {"error": {"type": "object", "properties": error, "required": list(error)}, "code": code}
    return {"type": "object", "properties": fields, "required": list(fields)}
