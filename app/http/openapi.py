"""Builds the OpenAPI document. Describes the bodies itself: FastAPI cannot see them, as routes parse them."""

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.errors import ErrorCode
from app.http.descriptions import describe_fields
from app.http.errors import STATUS
from app.http.examples import example_bodies
from app.schemas.base import RequestModel
from app.schemas.chat import WITHOUT_EFFECT, ChatRequest
from app.schemas.completions import ChatChunk, ChatCompletion
from app.schemas.concepts import ConceptDetail, ConceptList, ConceptRequest
from app.schemas.messages import LENIENT_MESSAGES
from app.schemas.models import AvailableModel, ModelDetails, ModelList, ModelSetting
from app.schemas.operations import Health
from app.schemas.readings import Readings, ReadRequest
from app.schemas.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from app.settings import Settings

_BODIES: tuple[type[RequestModel], ...] = (
    *(ChatRequest, ConceptRequest, ReadRequest),
    *(TokenizeRequest, DetokenizeRequest),
)
_ANSWERS = (
    *(ChatCompletion, ChatChunk),
    *(ConceptDetail, ConceptList, Readings),
    *(ModelDetails, ModelList, AvailableModel, ModelSetting),
    *(Tokenized, Detokenized, Health),
)

_ERRORS_OF_CONNECTIONS = (408, 431, 503)
"""Errors that any request may get, because they concern its connection: see app.http.connection."""

_CHUNK = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ChatChunk", "Error")]},
}
_EVENT: dict[str, Any] = {
    "type": "object",
    "description": "One server-sent event, if `stream` is true: the line `data: ` and a JSON chunk. "
    "The last event is `data: [DONE]`, or an error if the request fails after the first event.",
    "properties": {"data": {"description": "`[DONE]` or JSON.", "anyOf": [{"const": "[DONE]"}, _CHUNK]}},
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
    """Keyword arguments for a route's decorator: status, request body, responses.

    `answer` is the type of the response's body for `status`; None means no body. If `body` is given, the
    errors of reading it are added to `errors`. Without 401 in `errors`, the route needs no access token.
    """
    content = {} if answer is None else {media_type: {"schema": _schema(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    extra: dict[str, Any] = {} if 401 in errors else {"security": []}
    if body:
        errors += (400, 413, 415)
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    success = {"description": "Success", "content": content} | ({"links": links} if links else {})
    responses: dict[int, Any] = {status: success}
    responses |= {error: _error_response(error) for error in sorted(errors + _ERRORS_OF_CONNECTIONS)}
    return {"status_code": status, "openapi_extra": extra, "responses": responses}


def describe_file(answer: Any, *, errors: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """Like `describe`, for a route whose request body is a file."""
    described = describe(answer=answer, errors=(*errors, 400, 413, 415), **options)
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    described["openapi_extra"]["requestBody"] = {"required": True, "content": content}
    return described


def build_openapi(app: FastAPI, settings: Settings, vocab_sizes: Mapping[str, int]) -> dict[str, Any]:
    """The document for this server, with the limits from `settings`.

    `vocab_sizes`: the size of each loaded model's tokenizer, at least one, by the model's name.
    """
    names = list(vocab_sizes)
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        servers=[{"url": "/"}, {"url": "/v1", "description": "The same routes, for OpenAI's clients."}],
    )
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI adds it, but Tiller answers 400 instead
    template = "#/components/schemas/{}"
    _, bodies = models_json_schema(
        [(body, "validation") for body in _BODIES], ref_template=template.format("{model}")
    )
    _add_limits(bodies["$defs"], settings, vocab_sizes)
    if not settings.api.strict:
        _describe_lenience(bodies["$defs"])
    _add_examples(document["paths"], names[0], vocab_sizes[names[0]])
    _, answers = msgspec.json.schema_components(_ANSWERS, ref_template=template.format("{name}"))
    describe_fields(answers, _ANSWERS)
    document["components"] = {
        "schemas": bodies["$defs"] | answers | {"Error": _error_schema()},
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
    }
    document["security"] = [{"bearer": []}]
    return document


def _add_limits(schemas: dict[str, Any], settings: Settings, vocab_sizes: Mapping[str, int]) -> None:
    limits = settings.limits
    chat = schemas["ChatRequest"]["properties"]
    _narrow(chat["messages"], maxItems=limits.max_messages)
    _narrow(chat["n"], maximum=limits.max_n)
    _narrow(chat["logit_bias"], maxProperties=limits.max_logit_bias)
    if limits.default_max_tokens:
        chat["max_tokens"]["default"] = limits.default_max_tokens
    _narrow(schemas["ConceptRequest"]["properties"]["examples"], maxItems=limits.max_examples)
    for text in schemas["PairedExample"]["properties"].values():
        _narrow(text, maxLength=limits.max_example_characters)
    reading = schemas["ReadRequest"]["properties"]
    _narrow(reading["texts"], maxItems=limits.max_read_texts)
    _narrow(reading["messages"], maxItems=limits.max_messages)
    _narrow(
        schemas["DetokenizeRequest"]["properties"]["token_ids"]["items"],
        maximum=max(vocab_sizes.values()) - 1,
    )
    for body in _BODIES:
        _narrow(schemas[body.__name__]["properties"]["model"], examples=list(vocab_sizes))


def _describe_lenience(schemas: dict[str, Any]) -> None:
    """Describes what a chat request may contain if `api.strict` is false."""
    schemas["Message"]["properties"]["role"]["enum"].append("developer")
    chat = schemas["ChatRequest"]["properties"]
    chat["messages"]["description"] = LENIENT_MESSAGES
    for name, values in WITHOUT_EFFECT.items():
        chat[name] = {"enum": [None, *values], "description": "Unsupported. Other values are a 400."}


def _add_examples(paths: dict[str, Any], model: str, vocab_size: int) -> None:
    """Adds what `/docs` offers to send: a body, and the served model's name in the path."""
    bodies = {body.__name__: example for body, example in example_bodies(model, vocab_size).items()}
    for operation in (operation for path in paths.values() for operation in path.values()):
        if content := operation.get("requestBody", {}).get("content", {}).get("application/json"):
            content["example"] = bodies[content["schema"]["$ref"].rpartition("/")[2]]
        for parameter in operation.get("parameters", []):
            if parameter["name"] == "model":
                parameter["example"] = model


def _narrow(field: dict[str, Any], **constraints: object) -> None:
    """Adds constraints to a field's schema. If the field may be null, they go to the first alternative."""
    (field["anyOf"][0] if "anyOf" in field else field).update(constraints)


def _schema(answer: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([answer], ref_template="#/components/schemas/{name}")
    return schema


def _error_response(status: int) -> dict[str, Any]:
    codes = [code.value for code in ErrorCode if STATUS[code] == status]
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": " or ".join(codes), "content": content}


def _error_schema() -> dict[str, Any]:
    code = {"type": "string", "enum": [code.value for code in ErrorCode], "description": "Kind of the error."}
    error = {
        "message": {"type": "string", "description": "The field, the rule and what was given."},
        "type": {"type": "string", "description": "OpenAI's name for the kind of the error."},
        "param": {"type": ["string", "null"], "description": "The field that caused the error."},
        "code": code,
    }
    details = {"type": "object", "properties": error, "required": list(error)}
    details["description"] = "The error for OpenAI's clients. Aleph Alpha's read only `code`."
    fields = {"error": details, "code": code}
    return {"type": "object", "properties": fields, "required": list(fields)}
