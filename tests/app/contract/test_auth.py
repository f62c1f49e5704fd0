"""Access tokens: which routes need one, and that it is checked before the body is read."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.main import create_app
from app.settings import Settings
from tests.app.contract.support import CHAT, JSON, assert_error, body, chat, post_scope
from tests.app.fakes import FakeEngine

TOKEN, OTHER = "tiller-first-Token_1", "tiller-second-token"
AUTH = {
    "tokens": [
        {"name": name, "sha256": hashlib.sha256(token.encode()).hexdigest()}
        for name, token in [("ada", TOKEN), ("bob", OTHER)]
    ]
}
GUARDED = [
    ("POST", CHAT),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/steering_concepts"),
    ("GET", "/steering_concepts"),
    ("GET", "/steering_concepts/a"),
    ("GET", "/steering_concepts/_worker/a"),
    ("DELETE", "/steering_concepts/a"),
    ("GET", "/steering_concepts/a/vectors"),
    ("POST", "/steering_concepts/a/read"),
    ("POST", "/steering_concepts/import"),
    ("GET", "/models"),
    ("GET", "/models/tiny"),
    ("GET", "/models/tiny/tokenizer"),
    ("GET", "/models_available"),
    ("GET", "/model-settings"),
    ("GET", "/metrics"),
    ("GET", "/nowhere"),
    ("GET", "/healthz"),
    ("GET", "/health/x"),
    ("GET", "/live/x"),
    ("GET", "/readyz"),
    ("GET", "/docs/../metrics"),
    ("GET", "/docs/nothing.js"),
    ("GET", "/playground"),
    ("GET", "/playgrounds/main.js"),
]
PAGE = ["/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/favicon.png"]
OPEN = ["/", "/live", "/ready", "/health", "/version", "/openapi.json", *PAGE, "/playground/main.js"]
WRONG = [
    None,
    "",
    "Bearer",
    "Bearer ",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN.lower()}",
    f"Bearer {hashlib.sha256(TOKEN.encode()).hexdigest()}",
    f"Bearer{TOKEN}",
    f"Basic {TOKEN}",
    f"Bearer {TOKEN} {OTHER}",
    f"Bearer {TOKEN},{OTHER}",
    TOKEN,
    "Bearer \xff\xfe",
    "Bearer " + "x" * 20_000,
]


@pytest.fixture
async def guarded(serve) -> httpx.AsyncClient:
    return await serve(auth=AUTH)


@pytest.fixture
def guarded_app(engine: FakeEngine) -> FastAPI:
    return create_app(Settings(model={"name": "tiny"}, auth=AUTH), {"tiny": engine})


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def assert_unauthorized(response: httpx.Response) -> None:
    assert_error(response, 401, "UNAUTHORIZED")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("token", [TOKEN, OTHER])
async def test_each_configured_access_token_is_accepted(guarded: httpx.AsyncClient, token: str) -> None:
    assert (await guarded.post(CHAT, json=body(), headers=bearer(token))).status_code == 200


@pytest.mark.parametrize("header", WRONG, ids=lambda header: repr(header)[:30])
async def test_a_missing_or_wrong_access_token_is_refused(
    guarded: httpx.AsyncClient, engine: FakeEngine, header: str | None
) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    response = await guarded.post(CHAT, json=body(), headers=headers)
    assert_unauthorized(response)
    assert engine.requests == []


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_all_other_routes_need_an_access_token(
    guarded: httpx.AsyncClient, prefix: str, method: str, path: str
) -> None:
    assert_unauthorized(await guarded.request(method, prefix + path))
    assert (await guarded.request(method, prefix + path, headers=bearer(TOKEN))).status_code != 401


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("path", OPEN)
async def test_open_routes_need_no_access_token(guarded: httpx.AsyncClient, prefix: str, path: str) -> None:
    assert (await guarded.get(prefix + path)).status_code == 200
    assert (await guarded.get(prefix + path, headers=bearer("wrong"))).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_metrics_can_be_opened(serve, prefix: str) -> None:
    client = await serve(auth={**AUTH, "open_metrics": True})
    assert (await client.get(f"{prefix}/metrics")).status_code == 200
    assert_unauthorized(await client.get(f"{prefix}/models"))


async def test_a_streamed_request_without_an_access_token_gets_a_plain_401(
    guarded: httpx.AsyncClient,
) -> None:
    assert_unauthorized(await chat(guarded, stream=True))


SCOPES = {
    ("POST", "/chat/completions"): {"chat"},
    ("POST", "/tokenize"): {"chat"},
    ("POST", "/detokenize"): {"chat"},
    ("POST", "/steering_concepts"): {"concepts"},
    ("GET", "/steering_concepts/{concept:path}/vectors"): {"chat", "concepts"},
    ("POST", "/steering_concepts/{concept:path}/read"): {"chat", "concepts"},
    ("POST", "/steering_concepts/import"): {"concepts"},
    ("DELETE", "/steering_concepts/{concept:path}"): {"concepts"},
    ("GET", "/steering_concepts"): {"chat", "concepts"},
    ("GET", "/steering_concepts/{concept:path}"): {"chat", "concepts"},
    ("GET", "/metrics"): {"metrics"},
    ("GET", "/models"): {"chat", "concepts", "metrics"},
    ("GET", "/models/{model:path}"): {"chat", "concepts", "metrics"},
    ("GET", "/models/{model:path}/tokenizer"): {"chat", "concepts", "metrics"},
    ("GET", "/models_available"): {"chat", "concepts", "metrics"},
    ("GET", "/model-settings"): {"chat", "concepts", "metrics"},
}
"""For each route, the scopes that open it. Any one of them is enough."""


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Method and pattern of every route, with and without the prefix."""
    return {(method, route.path) for route in iter_route_contexts(app.routes) for method in route.methods}


def sample(pattern: str) -> str:
    filled = pattern.replace("{model:path}", "tiny").replace("{concept:path}", "a")
    return filled.replace("{file:path}", "main.js")


async def test_every_registered_route_needs_an_access_token_or_is_listed_as_open(
    guarded_app: FastAPI, guarded: httpx.AsyncClient
) -> None:
    routes = routes_of(guarded_app)
    assert len(routes) == 2 * (len(SCOPES) + len(OPEN))
    for method, pattern in routes:
        answer = await guarded.request(method, sample(pattern))
        if sample(pattern).removeprefix("/v1") in OPEN:
            assert answer.status_code == 200, pattern
        else:
            assert (method, pattern.removeprefix("/v1")) in SCOPES
            assert_unauthorized(answer)


@pytest.mark.parametrize("scope", ["chat", "concepts", "metrics"])
async def test_every_route_requires_its_scope(serve, guarded_app: FastAPI, scope: str) -> None:
    entry = {**AUTH["tokens"][0], "scopes": [scope]}
    client = await serve(auth={"tokens": [entry]})
    for method, pattern in routes_of(guarded_app):
        answer = await client.request(method, sample(pattern), headers=bearer(TOKEN))
        scopes = SCOPES.get((method, pattern.removeprefix("/v1")))
        if scopes is None or scope in scopes:
            assert answer.status_code in (200, 204, 400, 404), (method, pattern)
        else:
            assert_unauthorized(answer)
            assert all(needed in answer.json()["error"]["message"] for needed in scopes)


async def test_the_examples_of_a_concept_need_the_scope_concepts(serve) -> None:
    client = await serve(auth={"tokens": [{**AUTH["tokens"][0], "scopes": ["chat"]}]})
    path = "/steering_concepts/a"
    assert (await client.get(path, headers=bearer(TOKEN))).status_code == 404
    answer = await client.get(f"{path}?examples=true", headers=bearer(TOKEN))
    assert_unauthorized(answer)
    assert "concepts" in answer.json()["error"]["message"]


async def test_a_missing_scope_is_refused_before_the_body_is_read(engine: FakeEngine) -> None:
    entry = {**AUTH["tokens"][0], "scopes": ["metrics"]}
    app = create_app(Settings(model={"name": "tiny"}, auth={"tokens": [entry]}), {"tiny": engine})
    start, *_ = await response_without_reading_the_body(app, {**JSON, **bearer(TOKEN)})
    assert start["status"] == 401


@pytest.mark.parametrize(("offset", "status"), [(timedelta(hours=1), 200), (timedelta(seconds=-1), 401)])
async def test_an_access_token_expires(serve, offset: timedelta, status: int) -> None:
    entry = {**AUTH["tokens"][0], "expires": datetime.now(UTC) + offset}
    client = await serve(auth={"tokens": [entry]})
    answer = await client.get("/models", headers=bearer(TOKEN))
    assert answer.status_code == status
    if status == 401:
        assert_error(answer, 401, "UNAUTHORIZED", "expired")


@pytest.mark.parametrize("order", [(TOKEN, "wrong"), ("wrong", TOKEN), (TOKEN, TOKEN), (TOKEN, OTHER)])
async def test_two_authorization_headers_are_refused(
    guarded: httpx.AsyncClient, order: tuple[str, str]
) -> None:
    headers = [("authorization", f"Bearer {token}") for token in order]
    answer = await guarded.post(CHAT, json=body(), headers=headers)
    assert_unauthorized(answer)
    assert "one Authorization header" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        *("//metrics", "//v1/metrics", "/v1//metrics", "/v1/v1/metrics", "/V1/metrics", "/./metrics"),
        *("/health/../metrics", "/docs/..;/metrics", "/health%2f..%2fmetrics", "/%2e%2e/metrics"),
        *("/metrics%0a", "/metrics%00", "/metrics/", "/%6detrics", "/v1%2fmetrics", "/health%3f/../metrics"),
        *("/models%0a", "/steering_concepts%0a", "/chat%2fcompletions"),
    ],
)
async def test_no_spelling_of_a_path_bypasses_authentication(guarded: httpx.AsyncClient, path: str) -> None:
    url = httpx.URL("http://tiller").copy_with(raw_path=path.encode())
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        answer = await guarded.request(method, url)
        assert answer.status_code == 401, method
        answer = await guarded.request(method, url, headers=bearer(TOKEN))
        assert answer.status_code in (200, 204, 400, 404, 405), method


@pytest.mark.parametrize("scope", ["chat", "concepts"])
@pytest.mark.parametrize("path", ["/metrics", "/metrics%0a", "/v1/metrics%0a", "/%6detrics"])
async def test_no_spelling_of_a_path_bypasses_a_scope(serve, scope: str, path: str) -> None:
    client = await serve(auth={"tokens": [{**AUTH["tokens"][0], "scopes": [scope]}]})
    url = httpx.URL("http://tiller").copy_with(raw_path=path.encode())
    assert_unauthorized(await client.get(url, headers=bearer(TOKEN)))


Message = dict[str, Any]


async def response_without_reading_the_body(app: FastAPI, headers: dict[str, str]) -> list[Message]:
    """The messages that the app sends for a POST. Fails if the app reads the body."""
    sent: list[Message] = []

    async def receive() -> Message:
        pytest.fail("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    await app(post_scope(CHAT, headers), receive, send)
    return sent


@pytest.mark.parametrize("extra", [{}, {"content-length": "999999999999"}, {"content-type": "text/plain"}])
async def test_the_access_token_is_checked_before_the_body_is_read(
    guarded_app: FastAPI, extra: dict[str, str]
) -> None:
    start, *rest = await response_without_reading_the_body(guarded_app, {**JSON, **extra})
    assert start["status"] == 401
    assert (b"www-authenticate", b"Bearer") in {(name.lower(), value) for name, value in start["headers"]}
    assert b"UNAUTHORIZED" in b"".join(part.get("body", b"") for part in rest)


async def test_without_access_tokens_every_route_is_open(client: httpx.AsyncClient) -> None:
    assert (await chat(client)).status_code == 200
    assert (await client.get("/models", headers=bearer("whatever"))).status_code == 200
