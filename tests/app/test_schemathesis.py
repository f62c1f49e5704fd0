"""schemathesis makes valid and invalid requests from /openapi.json. Responses must be as documented there.

All of its phases run against a real server: examples, coverage, fuzzing, and sequences of linked operations.
A longer run with other requests: `TILLER_FUZZ_EXAMPLES=500 TILLER_FUZZ_SEED=1 pytest` with this file's name.
"""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import engine as schemathesis_engine
from schemathesis.config import SchemathesisConfig
from schemathesis.core import NOT_SET
from schemathesis.engine import events
from schemathesis.specs.openapi import schemas as _schemas  # noqa: F401 - else imported in the middle of a test

from app.schemas.concepts import ID_PATTERN, full_id
from app.settings import Settings
from tests.app.concepts.vectors.files import vector, write_safetensors
from tests.app.contract.support import CONCEPTS, store_concepts
from tests.app.fakes import FakeEngine, model_info, reply
from tests.app.live import serving

EXAMPLES = int(os.environ.get("TILLER_FUZZ_EXAMPLES", "6"))
SEED = int(os.environ.get("TILLER_FUZZ_SEED", "0"))
TOKEN = "secret"
GENERATED = [40, 41, 42]
LARGE = 10**10
"""Vocabulary size, above every key of logit_bias that the schema allows: the schema has no limit for keys."""
VECTORS = write_safetensors({1: vector()}, name="fuzzed")
OPTIONS = {"no-shrink": True, "with-security-parameters": False}
SUCCESSES = {
    "POST /chat/completions": 200,
    "POST /tokenize": 200,
    "POST /detokenize": 200,
    "POST /steering_concepts": 201,
    "GET /steering_concepts": 200,
    "GET /steering_concepts/{concept}": 200,
    "DELETE /steering_concepts/{concept}": 204,
    "GET /steering_concepts/{concept}/vectors": 200,
    "POST /steering_concepts/{concept}/read": 200,
    "POST /steering_concepts/import": 201,
    "GET /models": 200,
    "GET /models/{model}": 200,
    "GET /models/{model}/tokenizer": 200,
    "GET /models_available": 200,
    "GET /model-settings": 200,
    "GET /version": 200,
    "GET /live": 200,
    "GET /ready": 200,
    "GET /health": 200,
    "GET /metrics": 200,
}
ALIASES = ("max_tokens", "max_completion_tokens", "maximum_tokens")
TURNS = ("user", "assistant")


@pytest.fixture
def server(model_directory: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of a gateway with a fake engine, in its own thread."""
    store_concepts(tmp_path / "data", CONCEPTS)
    token = {"name": "ada", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}
    settings = Settings(
        model={"name": "tiny"}, data_directory=str(tmp_path / "data"), auth={"tokens": [token]}
    )
    info = model_info(model_directory, LARGE)
    facts = {name: getattr(info, name) for name in info.__struct_fields__}
    engine = FakeEngine(type(info)(**{**facts, "context_length": LARGE}), script=reply(GENERATED))
    with serving(settings, engine) as (host, port):
        yield f"http://{host}:{port}"


@schemathesis.hook("before_call")
def apply_rules_beyond_the_schema(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Changes bodies that match the schema but would be refused by rules that no schema can express.

    Changes only parts that match the schema, so that deliberately invalid requests stay invalid.
    """
    if case.operation.label == "POST /steering_concepts/import" and case.body is not NOT_SET:
        case.body = VECTORS
    if isinstance(case.body, dict):
        case.body = with_integers(case.body)
        if isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"
        alternate_roles(case.body.get("messages"))
        align_token_limits(case.body)
        limit_concepts(case.body)
        align_strengths(case.body)
        align_condition(case.body)
        make_examples_differ(case.body.get("examples"))


def with_integers(value: Any) -> Any:
    """Makes 1.0 an int: JSON Schema takes it for an integer, but Tiller does not."""
    match value:
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case list():
            return [with_integers(item) for item in value]
        case dict():
            return {name: with_integers(item) for name, item in value.items()}
    return value


def alternate_roles(messages: Any) -> None:
    """Makes the roles alternate from `user` to `user`, after an optional `system`."""
    if not isinstance(messages, list) or not all(map(has_role, messages)):
        return
    if len(messages) % 2 == 0 and messages:
        messages[0]["role"] = "system"
    first = 1 - len(messages) % 2
    for position, message in enumerate(messages[first:]):
        message["role"] = TURNS[position % 2]


def has_role(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", *TURNS)


def align_token_limits(body: dict[str, Any]) -> None:
    """Gives all aliases of max_tokens one value that fits into the context."""
    given = [name for name in ALIASES if type(body.get(name)) is int and body[name] >= 1]
    body.update(dict.fromkeys(given, min([body[name] for name in given] + [LARGE // 2], default=1)))


def limit_concepts(body: dict[str, Any]) -> None:
    """Keeps at most 16 concepts, so that there cannot be too many distinct ones."""
    for name in ("steering_concepts", "steering_readings"):
        if isinstance(body.get(name), list):
            del body[name][16:]


def align_strengths(body: dict[str, Any]) -> None:
    """Keeps one strength for each named concept. Does not touch what the schema refuses."""
    concepts, strengths = body.get("steering_concepts"), body.get("steering_strength")
    if not isinstance(strengths, dict):
        return
    listed = concepts if isinstance(concepts, list) else []
    named = [full_id(concept) for concept in listed if isinstance(concept, str)]
    for key, strength in list(strengths.items()):
        if re.fullmatch(ID_PATTERN, key) and is_number(strength) and -2 <= strength <= 2:
            del strengths[key]
            if full_id(key) in named:
                strengths[full_id(key)] = strength


def align_condition(body: dict[str, Any]) -> None:
    """Keeps one bound of an empty range. Steers the answer if there is a condition."""
    when = body.get("steering_when")
    if not isinstance(when, dict):
        return
    if body.get("steering_scope") == "prompt":
        body["steering_scope"] = "answer"
    above, below = when.get("above"), when.get("below")
    if is_number(above) and is_number(below) and above >= below:
        del when["below"]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def make_examples_differ(examples: Any) -> None:
    for pair in examples if isinstance(examples, list) else ():
        text = pair.get("positive") if isinstance(pair, dict) else None
        if isinstance(text, str) and text.strip() and text == pair.get("negative"):
            pair["negative"] = text[:-1] + ("b" if text.endswith("a") else "a")


def run(url: str) -> Iterator[events.EngineEvent]:
    config = SchemathesisConfig.from_dict(
        {
            "base-url": url,
            "seed": SEED,
            "continue-on-failure": True,
            "generation": {"max-examples": EXAMPLES, "database": "none", **OPTIONS},
            "auth": {"openapi": {"bearer": {"bearer": TOKEN}}},
        }
    )
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    return iter(schemathesis_engine.from_schema(schema).execute())


def test_every_response_is_as_documented(server: str, caplog: pytest.LogCaptureFixture) -> None:
    failures: list[str] = []
    phases: set[str] = set()
    answers: Counter[tuple[str, int]] = Counter()
    for event in run(server):
        match event:
            case events.NonFatalError() | events.FatalError():
                failures.append(str(event))
            case events.ScenarioFinished():
                phases.add(event.phase.value)
                answers.update(statuses(event))
                failures += list(failures_of(event))
    if failures:
        pytest.fail("\n\n".join(failures), pytrace=False)
    assert phases >= {"examples", "coverage", "fuzzing", "stateful"}
    missing = [operation for operation, status in SUCCESSES.items() if not answers[operation, status]]
    assert missing == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def statuses(event: events.ScenarioFinished) -> Iterator[tuple[str, int]]:
    cases = event.recorder.cases
    for identifier, interaction in event.recorder.interactions.items():
        if interaction.response is not None:
            yield cases[identifier].value.operation.label, interaction.response.status_code


def failures_of(event: events.ScenarioFinished) -> Iterator[str]:
    for identifier, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                response = event.recorder.interactions[identifier].response
                answer = "" if response is None else f"{response.status_code} {response.content[:300]!r}"
                yield (
                    f"{event.recorder.label} {check.failure_info.failure.title}: "
                    f"{check.failure_info.failure.message}\n{check.failure_info.code_sample[:2000]}\n{answer}"
                )
