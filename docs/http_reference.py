"""Renders the HTTP reference of the site: each route and each field, as `/openapi.json` describes them.

The limits and defaults are those of the default configuration.
"""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from app import __version__
from app.http.openapi import build_openapi
from app.routes.table import ROUTERS
from app.settings import Settings

SERVER = "http://localhost:8000"
VOCAB_SIZE = 49152
"""Of the quick start's model."""
CONCEPT = "slang"
"""The concept that the examples create, use and delete."""
FILE = "vectors.safetensors"

ORDER = (
    ("post", "/chat/completions"),
    ("post", "/steering_concepts"),
    ("get", "/steering_concepts"),
    ("get", "/steering_concepts/{concept}"),
    ("post", "/steering_concepts/{concept}/read"),
    ("get", "/steering_concepts/{concept}/vectors"),
    ("post", "/steering_concepts/import"),
    ("delete", "/steering_concepts/{concept}"),
)
"""The examples run in this order. The other routes follow."""

INTRODUCTION = """\
Every route and every field. [api.md](api.md) explains them together; a running server has the same
reference at `/docs`, with its own limits. The limits here are those of the default configuration. The
examples run against the server of the [quick start](../README.md#try-it), in this order. If the server has
access tokens, add `-H 'Authorization: Bearer TOKEN'`.
"""

Schema = dict[str, Any]


def read_document() -> Schema:
    """The OpenAPI document of a server with the default configuration."""
    app = FastAPI(title="Tiller", version=__version__)
    for router in ROUTERS:
        app.include_router(router)
    settings = Settings()
    return build_openapi(app, settings, {settings.model.name: VOCAB_SIZE})


def render(document: Schema) -> str:
    """The page, as Markdown."""
    schemas = document["components"]["schemas"]
    parts = ["# HTTP reference", INTRODUCTION]
    for method, path, operation in _operations(document["paths"]):
        parts += _describe_route(method, path, operation)
    parts += ["## Objects", "The objects in requests and answers."]
    for name, schema in schemas.items():
        parts += _describe_object(name, schema)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _operations(paths: Schema) -> Iterator[tuple[str, str, Schema]]:
    found = {(method, path): operation for path, item in paths.items() for method, operation in item.items()}
    for method, path in (*ORDER, *(key for key in found if key not in ORDER)):
        yield method, path, found[method, path]


def _describe_route(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f"## {method.upper()} {path}"
    yield _with_lists(operation["description"])
    yield f"```sh\n{_example(method, path, operation)}\n```"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | meaning |\n|---|---|---|---|\n" + "\n".join(
            f"| `{one['name']}` | {one['in']} | {_type(one['schema'])} | {_line(one['description'])} |"
            for one in parameters
        )
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Request: {_media(media_type, content)}"
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            answers = " or ".join(_media(*item) for item in response.get("content", {}).items())
            yield f"Answer: {status}, {answers or 'without a body'}"


def _media(media_type: str, content: Schema) -> str:
    if media_type == "text/event-stream":
        return f"`{media_type}` with events of type {_link('ChatChunk')}"
    kind = _type(content["schema"])
    return kind if media_type == "application/json" else f"`{media_type}`"


def _describe_object(name: str, schema: Schema) -> Iterator[str]:
    yield f"### {name}"
    if "description" in schema:
        yield schema["description"]
    if "enum" in schema:
        yield f"One of {_values(schema['enum'])}."
    if not (fields := schema.get("properties")):
        return
    required = schema.get("required", [])
    rows = [_row(field, described, field in required) for field, described in fields.items()]
    yield "| field | type | meaning |\n|---|---|---|\n" + "\n".join(rows)
    for field, described in fields.items():
        if described.get("type") == "object" and "properties" in described:
            yield f"The fields of `{field}`:"
            inner = described["properties"].items()
            yield "| field | type | meaning |\n|---|---|---|\n" + "\n".join(
                _row(one, value, one in described.get("required", [])) for one, value in inner
            )


def _row(name: str, schema: Schema, is_required: bool) -> str:
    is_null = {"type": "null"} in schema.get("anyOf", [])
    kind = _type(schema) + (" or null" if is_null and is_required else "")
    kind += ", required" if is_required else _default(schema)
    return f"| `{name}` | {kind} | {_line(schema.get('description', ''))} |"


def _default(schema: Schema) -> str:
    value = schema.get("default")
    return "" if value is None else f", default `{json.dumps(value)}`"


def _type(schema: Schema) -> str:
    """A schema in words, such as "integer, 1 to 20", without null."""
    if "$ref" in schema:
        return _link(schema["$ref"].rpartition("/")[2])
    if options := schema.get("anyOf"):
        kinds = [_type(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return _values(schema["enum"])
    kind = schema.get("type", "anything")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    if kind == "array":
        return f"array of {_type(schema['items'])}{_range(schema, 'Items')}"
    if kind == "string":
        return kind + _range(schema, "Length") + (f", `{schema['pattern']}`" if "pattern" in schema else "")
    return kind + _range(schema, "imum") + _range(schema, "Properties")


def _range(schema: Schema, what: str) -> str:
    """The limits of a number, or of a number of items, characters or properties."""
    unit = {"Items": " items", "Length": " characters", "Properties": " fields", "imum": ""}[what]
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    match low, high:
        case None, None:
            return ""
        case _, None:
            return f", at least {low}{unit}"
        case None, _:
            return f", at most {high}{unit}"
    return f", {low} to {high}{unit}"


def _values(values: list[Any]) -> str:
    return " or ".join(f"`{value}`" for value in values)


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _line(text: str) -> str:
    """The text as a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def _with_lists(text: str) -> str:
    """Markdown needs an empty line before a list."""
    return text.replace("Errors:\n-", "Errors:\n\n-")


def _example(method: str, path: str, operation: Schema) -> str:
    """A command that sends a request to the route."""
    for parameter in operation.get("parameters", []):
        value = parameter.get("example", CONCEPT)
        path = path.replace(f"{{{parameter['name']}}}", str(value))
    content = operation.get("requestBody", {}).get("content", {})
    if example := content.get("application/json", {}).get("example"):
        body = _body(example).replace("'", "'\\''")
        return f"curl {SERVER}{path} \\\n  -H 'Content-Type: application/json' \\\n  -d '{body}'"
    if content:
        return (
            f"curl '{SERVER}{path}?name={CONCEPT}-2' \\\n"
            f"  -H 'Content-Type: application/octet-stream' --data-binary @{FILE}"
        )
    option = {"delete": "-X DELETE ", "get": f"-o {FILE} " if path.endswith("/vectors") else ""}[method]
    return f"curl {option}{SERVER}{path}"


def _body(example: Schema) -> str:
    """JSON with a line for each field, and for each object in a list."""
    lines = []
    for name, value in example.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(f"      {json.dumps(one, ensure_ascii=False)}" for one in value) + "]"
        lines.append(f'    "{name}": {text}')
    return "{\n" + ",\n".join(lines) + "}"
