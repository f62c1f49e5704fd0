"""/openapi.json describes the contract correctly."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI
from tokenizers import Tokenizer

from tests.app.contract.support import CHAT, body

CONCEPTS = "/steering_concepts"
ROUTES = [
    ("post", CHAT),
    ("post", "/tokenize"),
    ("post", "/detokenize"),
    ("post", CONCEPTS),
    ("get", CONCEPTS),
    ("get", f"{CONCEPTS}/{{model}}"),
    ("delete", f"{CONCEPTS}/{{model}}"),
    ("get", f"{CONCEPTS}/{{model}}/vectors"),
    ("post", f"{CONCEPTS}/{{model}}/read"),
    ("post", f"{CONCEPTS}/import"),
    ("get", "/models"),
    ("get", "/models/{model}"),
    ("get", "/models/{model}/tokenizer"),
    ("get", "/models_available"),
    ("get", "/model-settings"),
    ("get", "/version"),
    ("get", "/live"),
    ("get", "/ready"),
    ("get", "/health"),
    ("get", "/metrics"),
]
OPEN = {"/version", "/live", "/ready", "/health"}
RANGES = {
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "top_logprobs": (0, 20),
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "maximum_tokens": (1, None),
    "n": (1, 16),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (1, None),
}
TYPES = {
    "messages": "array",
    "model": "string",
    "logit_bias": "object",
    "logprobs": "boolean",
    "stream": "boolean",
    "steering_concepts": "array",
    "steering_readings": "array",
    "steering_scope": "string",
    "steering_mode": "string",
    **{name: "integer" for name, (low, high) in RANGES.items() if high in (None, 16, 20)},
    **{name: "number" for name, (low, high) in RANGES.items() if high in (1, 2)},
}
Schema = dict[str, Any]


@pytest.fixture
async def document(client: httpx.AsyncClient) -> Schema:
    response = await client.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


def walk(node: Any) -> Iterator[Schema]:
    """Every object in the document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def resolve(document: Schema, node: Schema) -> Schema:
    """The node with `$ref` resolved and the alternative `null` removed."""
    while "$ref" in node:
        siblings = {name: value for name, value in node.items() if name != "$ref"}
        target = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        node = {**target, **siblings}
    present = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if len(present) == 1:
        siblings = {name: value for name, value in node.items() if name != "anyOf"}
        return resolve(document, {**present[0], **siblings})
    return node


def operation(document: Schema, method: str, path: str) -> Schema:
    """The operation, documented with or without /v1. Its path parameter may have any name."""
    for documented, item in document["paths"].items():
        plain = documented.removeprefix("/v1").replace(":path}", "}")
        parts = ["{model}" if part.startswith("{") else part for part in plain.split("/")]
        if "/".join(parts) == path and method in item:
            return item[method]
    pytest.fail(f"{method} {path} is not documented")


def chat_request(document: Schema) -> Schema:
    content = operation(document, "post", CHAT)["requestBody"]["content"]
    return resolve(document, content["application/json"]["schema"])


def field(document: Schema, name: str) -> Schema:
    return resolve(document, chat_request(document)["properties"][name])


async def test_it_is_an_openapi_document(document: Schema) -> None:
    assert document["openapi"].startswith("3.")
    OpenAPI.model_validate(document)


async def test_it_is_the_same_under_both_prefixes(client: httpx.AsyncClient, document: Schema) -> None:
    assert (await client.get("/v1/openapi.json")).json()["paths"] == document["paths"]


async def test_every_reference_resolves(document: Schema) -> None:
    references = [node for node in walk(document) if isinstance(node.get("$ref"), str)]
    for node in references:
        assert node["$ref"].startswith("#/")
        assert resolve(document, node)
    assert references


async def test_operation_ids_are_distinct(document: Schema) -> None:
    operations = [entry for item in document["paths"].values() for entry in item.values()]
    ids = [entry["operationId"] for entry in operations if "operationId" in entry]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_is_documented(document: Schema, method: str, path: str) -> None:
    assert any(status.startswith("2") for status in operation(document, method, path)["responses"])


async def test_path_parameters_are_declared(document: Schema) -> None:
    for path, item in document["paths"].items():
        names = {part.strip("{}").removesuffix(":path") for part in path.split("/") if part.startswith("{")}
        for entry in item.values():
            declared = {p["name"] for p in entry.get("parameters", []) if p["in"] == "path"}
            assert declared == names


async def test_there_is_no_422(document: Schema) -> None:
    statuses = [
        status for item in document["paths"].values() for o in item.values() for status in o["responses"]
    ]
    assert "422" not in statuses
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.parametrize("name", [*TYPES, "stop", "stream_options", "steering_strength", "steering_when"])
async def test_every_field_of_a_chat_request_is_documented(document: Schema, name: str) -> None:
    schema = field(document, name)
    assert name not in TYPES or schema["type"] == TYPES[name]


async def test_only_messages_and_model_are_required(document: Schema) -> None:
    assert set(chat_request(document)["required"]) == {"messages", "model"}


@pytest.mark.parametrize(("name", "bounds"), list(RANGES.items()))
async def test_ranges_are_documented(document: Schema, name: str, bounds: tuple[int, int | None]) -> None:
    schema = field(document, name)
    assert (schema.get("minimum"), schema.get("maximum")) == bounds


@pytest.mark.parametrize(
    ("name", "default"),
    [
        *[("temperature", 1), ("top_p", 1)],
        *[("steering_strength", 1), ("steering_concepts", []), ("steering_readings", [])],
        *[("steering_scope", "all"), ("steering_mode", "add"), ("steering_when", None)],
    ],
)
async def test_defaults_are_documented(document: Schema, name: str, default: Any) -> None:
    assert field(document, name)["default"] == default


async def test_the_limits_of_this_server_are_documented(serve) -> None:
    limits = {"max_n": 3, "max_messages": 5, "max_logit_bias": 7, "max_examples": 9}
    client = await serve(limits={**limits, "max_example_characters": 11})
    document = (await client.get("/openapi.json")).json()
    assert field(document, "n")["maximum"] == 3
    assert (field(document, "messages")["minItems"], field(document, "messages")["maxItems"]) == (1, 5)
    assert field(document, "logit_bias")["maxProperties"] == 7
    assert field(document, "logit_bias")["additionalProperties"] is False
    schemas = document["components"]["schemas"]
    assert schemas["ConceptRequest"]["properties"]["examples"]["maxItems"] == 9
    text = schemas["PairedExample"]["properties"]["negative"]
    assert text["maxLength"] == 11
    for blank in map(chr, range(0x3100)):  # there is no white space above it
        assert bool(re.search(text["pattern"], blank)) == bool(blank.strip())


async def test_the_operators_default_for_max_tokens_is_documented(serve, document: Schema) -> None:
    assert field(document, "max_tokens")["default"] is None
    client = await serve(limits={"default_max_tokens": 77})
    assert field((await client.get("/openapi.json")).json(), "max_tokens")["default"] == 77


async def test_the_largest_token_id_is_documented(document: Schema, tiny_tokenizer: Tokenizer) -> None:
    ids = document["components"]["schemas"]["DetokenizeRequest"]["properties"]["token_ids"]["items"]
    assert (ids["minimum"], ids["maximum"]) == (0, tiny_tokenizer.get_vocab_size() - 1)


async def test_the_served_model_is_the_example(document: Schema) -> None:
    assert field(document, "model")["examples"] == ["tiny"]
    paths = [parameter for parameter in parameters_of(document) if parameter["name"] == "model"]
    assert [parameter["in"] for parameter in paths].count("path") == 2
    assert {parameter["example"] for parameter in paths} == {"tiny"}


def parameters_of(document: Schema) -> list[Schema]:
    operations = [entry for item in document["paths"].values() for entry in item.values()]
    return [parameter for entry in operations for parameter in entry.get("parameters", [])]


@pytest.mark.parametrize("strict", [True, False])
async def test_every_field_and_every_parameter_has_a_description(serve, strict: bool) -> None:
    client = await serve(api={"strict": strict})
    document = (await client.get("/openapi.json")).json()
    fields = [item for node in walk(document) for item in node.get("properties", {}).items()]
    assert len(fields) > 100
    fields += [(parameter["name"], parameter) for parameter in parameters_of(document)]
    assert [name for name, field in fields if not field.get("description", "").strip()] == []
    texts = [field["description"] for _, field in fields]
    assert [text for text in texts if "None" in text or not text.endswith(".")] == []


async def test_the_example_of_each_route_is_answered(serve) -> None:
    client = await serve()
    document = (await client.get("/openapi.json")).json()
    document["paths"] = {path: document["paths"][path] for path in sorted(document["paths"])}
    sent = 0
    for path, item in document["paths"].items():
        for method, entry in item.items():
            if content := entry.get("requestBody", {}).get("content", {}).get("application/json"):
                url = path.replace("{concept}", "slang")  # the example of POST /steering_concepts creates it
                answer = await client.request(method, url, json=content["example"])
                assert answer.is_success, answer.text
                sent += 1
    assert sent == 5


async def test_the_example_of_a_chat_is_short_and_calm(document: Schema) -> None:
    content = operation(document, "post", CHAT)["requestBody"]["content"]
    example = content["application/json"]["example"]
    assert example["model"] == "tiny"
    assert example["max_tokens"] <= 64
    assert example["temperature"] < 0.5


REJECTED = {"response_format", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}


async def test_the_strict_mode_documents_the_rejected_fields_as_null(document: Schema) -> None:
    for name in REJECTED:
        assert chat_request(document)["properties"][name]["type"] == "null"


async def test_the_lenient_mode_is_documented(serve) -> None:
    client = await serve(api={"strict": False})
    document = (await client.get("/openapi.json")).json()
    fields = chat_request(document)["properties"]
    assert "merged" in fields["messages"]["description"]
    message = resolve(document, field(document, "messages")["items"])
    assert set(message["properties"]["role"]["enum"]) == {"system", "user", "assistant", "developer"}
    assert {name: fields[name]["enum"] for name in REJECTED} == {
        "response_format": [None, {"type": "text"}],
        "tools": [None, []],
        "tool_choice": [None, "none"],
        "parallel_tool_calls": [None, True, False],
        "functions": [None, []],
        "function_call": [None, "none"],
    }
    for name in REJECTED:
        for value in fields[name]["enum"]:
            assert (await client.post(CHAT, json=body(**{name: value}))).status_code == 200


async def test_a_created_concept_links_to_its_routes(document: Schema) -> None:
    links = operation(document, "post", CONCEPTS)["responses"]["201"]["links"]
    concept = f"{CONCEPTS}/{{model}}"
    routes = [("get", ""), ("delete", ""), ("get", "/vectors"), ("post", "/read")]
    ids = {operation(document, method, concept + path)["operationId"] for method, path in routes}
    assert {link["operationId"] for link in links.values()} == ids
    imported = operation(document, "post", f"{CONCEPTS}/import")["responses"]["201"]["links"]
    assert imported == links


async def test_an_event_is_a_chunk_an_error_or_the_end(document: Schema) -> None:
    content = operation(document, "post", CHAT)["responses"]["200"]["content"]
    end, chunk = content["text/event-stream"]["schema"]["properties"]["data"]["anyOf"]
    assert end == {"const": "[DONE]"}
    fields = [resolve(document, kind)["properties"].keys() for kind in chunk["contentSchema"]["anyOf"]]
    assert [{"choices", "usage"} <= fields[0], fields[1] == {"error", "code"}] == [True, True]


async def test_roles_are_an_enum(document: Schema) -> None:
    message = resolve(document, field(document, "messages")["items"])
    role = resolve(document, message["properties"]["role"])
    assert set(role["enum"]) == {"system", "user", "assistant"}
    assert {"role", "content"} <= set(message["required"])


async def test_finish_reasons_are_an_enum(document: Schema) -> None:
    enums = [set(node["enum"]) - {None} for node in walk(document) if isinstance(node.get("enum"), list)]
    assert {"stop", "length", "content_filter"} in enums


async def test_the_limits_of_stop_are_documented(document: Schema) -> None:
    nodes = list(walk(field(document, "stop")))
    assert any(node.get("maxItems") == 16 for node in nodes)
    assert any((node.get("minLength"), node.get("maxLength")) == (1, 256) for node in nodes)


@pytest.mark.parametrize("name", ["steering_concepts", "steering_readings", "steering_when"])
async def test_the_pattern_of_concept_ids_is_documented(document: Schema, name: str) -> None:
    patterns = [node["pattern"] for node in walk(field(document, name)) if "pattern" in node]
    assert patterns
    assert "_worker/" in patterns[0]


async def test_a_strength_is_documented_as_a_number_or_as_one_for_each_concept(document: Schema) -> None:
    number, each = field(document, "steering_strength")["anyOf"]
    assert (number["type"], number["minimum"], number["maximum"]) == ("number", -2, 2)
    ((pattern, strength),) = each["patternProperties"].items()
    assert (each["type"], each["additionalProperties"]) == ("object", False)
    assert re.fullmatch(pattern, "_worker/a")
    assert (strength["type"], strength["minimum"], strength["maximum"]) == ("number", -2, 2)


async def test_scopes_and_modes_are_documented(document: Schema) -> None:
    assert field(document, "steering_scope")["enum"] == ["all", "prompt", "answer"]
    assert field(document, "steering_mode")["enum"] == ["add", "ablate", "clamp"]


async def test_a_condition_is_documented_as_a_concept_with_a_bound(document: Schema) -> None:
    condition = document["components"]["schemas"]["SteeringWhen"]
    assert (condition["required"], condition["additionalProperties"]) == (["concept"], False)
    assert condition["properties"].keys() == {"concept", "above", "below"}
    bounds = [(option["required"], option["properties"]) for option in condition["anyOf"]]
    assert [required for required, _ in bounds] == [["above"], ["below"]]
    assert [properties[name]["type"] for [name], properties in bounds] == ["number", "number"]


async def test_what_an_answer_reports_about_steering_is_documented_as_optional(document: Schema) -> None:
    schemas = document["components"]["schemas"]
    for name, optional in (
        ("Choice", "steering_readings"),
        ("ChunkChoice", "steering_readings"),
        ("ChatCompletion", "steering"),
        ("ChatChunk", "steering"),
    ):
        assert optional in schemas[name]["properties"]
        assert optional not in schemas[name]["required"]
        assert {"type": "null"} not in schemas[name]["properties"][optional].get("anyOf", [])
    readings = schemas["TokenReadings"]["properties"]["readings"]["additionalProperties"]
    assert {kind["type"] for kind in readings["anyOf"]} == {"number", "null"}


async def test_aleph_alphas_name_for_max_tokens_is_deprecated(document: Schema) -> None:
    assert chat_request(document)["properties"]["maximum_tokens"]["deprecated"] is True
    assert "deprecated" not in chat_request(document)["properties"]["temperature"]


async def test_nice_is_a_boolean_query_parameter(document: Schema) -> None:
    (nice,) = [p for p in operation(document, "post", CHAT)["parameters"] if p["name"] == "nice"]
    assert (nice["in"], resolve(document, nice["schema"])["type"]) == ("query", "boolean")
    assert not nice.get("required")


async def test_chat_answers_json_or_an_event_stream(document: Schema) -> None:
    content = operation(document, "post", CHAT)["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
    answer = resolve(document, content["application/json"]["schema"])
    assert {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"} <= answer[
        "properties"
    ].keys()


@pytest.mark.parametrize("status", ["400", "401", "404", "408", "413", "415", "429", "431", "500", "503"])
async def test_chats_errors_are_documented_in_the_contracts_shape(document: Schema, status: str) -> None:
    response = resolve(document, operation(document, "post", CHAT)["responses"][status])
    schema = resolve(document, response["content"]["application/json"]["schema"])
    assert schema["properties"].keys() == {"error", "code"}
    error = resolve(document, schema["properties"]["error"])
    assert error["properties"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_errors_of_the_connection_are_documented_for_each_route(
    document: Schema, method: str, path: str
) -> None:
    assert operation(document, method, path)["responses"].keys() >= {"408", "431", "500", "503"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_routes_that_need_an_access_token_say_so(document: Schema, method: str, path: str) -> None:
    security = operation(document, method, path).get("security", document.get("security", []))
    schemes = document["components"]["securitySchemes"]
    named = [schemes[name] for requirement in security for name in requirement]
    if path in OPEN:
        assert named == []
    else:
        assert [(scheme["type"], scheme["scheme"].lower()) for scheme in named] == [("http", "bearer")]


async def test_creating_a_concept_answers_201_with_its_report(document: Schema) -> None:
    responses = operation(document, "post", CONCEPTS)["responses"]
    errors = {"400", "401", "404", "408", "409", "413", "415", "429", "431", "500", "503"}
    assert set(responses) == {"201"} | errors
    answer = resolve(document, responses["201"]["content"]["application/json"]["schema"])
    assert {"id", "object", "created", "state", "report", "error"} <= answer["properties"].keys()
    report = resolve(document, answer["properties"]["report"])
    assert {"works", "summary", "warnings", "effects"} <= report["properties"].keys()


async def test_only_a_concepts_examples_are_required(document: Schema) -> None:
    content = operation(document, "post", CONCEPTS)["requestBody"]["content"]
    schema = resolve(document, content["application/json"]["schema"])
    assert schema["required"] == ["examples"]
    assert set(schema["properties"]) == {"examples", "name", "description", "model"}
    pair = resolve(document, schema["properties"]["examples"]["items"])
    assert set(pair["required"]) == {"positive", "negative"}


async def test_deleting_a_concept_answers_without_a_body(document: Schema) -> None:
    responses = operation(document, "delete", f"{CONCEPTS}/{{model}}")["responses"]
    assert set(responses) == {"204", "401", "404", "408", "409", "431", "500", "503"}
    assert not responses["204"].get("content")


async def test_an_import_takes_a_file_and_answers_like_a_creation(document: Schema) -> None:
    entry = operation(document, "post", f"{CONCEPTS}/import")
    assert entry["requestBody"] == {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
    errors = {"400", "401", "404", "408", "409", "413", "415", "429", "431", "500", "503"}
    assert set(entry["responses"]) == {"201"} | errors
    created = operation(document, "post", CONCEPTS)["responses"]["201"]
    assert entry["responses"]["201"]["content"] == created["content"]
    assert {parameter["name"]: parameter["in"] for parameter in entry["parameters"]} == {
        "name": "query",
        "description": "query",
        "model": "query",
    }


async def test_an_export_answers_with_a_file(document: Schema) -> None:
    responses = operation(document, "get", f"{CONCEPTS}/{{model}}/vectors")["responses"]
    assert set(responses["200"]["content"]) == {"application/octet-stream"}


async def test_a_reading_takes_either_texts_or_messages(document: Schema) -> None:
    content = operation(document, "post", f"{CONCEPTS}/{{model}}/read")["requestBody"]["content"]
    schema = resolve(document, content["application/json"]["schema"])
    assert [option["required"] for option in schema["oneOf"]] == [["texts"], ["messages"]]
    texts = resolve(document, schema["properties"]["texts"])
    assert (texts["minItems"], texts["maxItems"], texts["items"]["minLength"]) == (1, 256, 1)
