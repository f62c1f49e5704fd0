"""HTTP around the routes: HEAD, OPTIONS, common response headers, and CORS."""

import hashlib

import httpx
import pytest

from tests.app.contract.support import CHAT, assert_error, body

PAGE = "https://page.example"
READ = [
    *("/live", "/ready", "/health", "/version", "/models", "/models/tiny", "/models/tiny/tokenizer"),
    *(
        "/models_available",
        "/model-settings",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/steering_concepts",
        "/steering_concepts/a",
    ),
]
AUTH = {"tokens": [{"name": "ada", "sha256": hashlib.sha256(b"secret").hexdigest()}]}
BEARER = {"authorization": "Bearer secret"}


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("path", READ)
async def test_head_is_get_without_the_body(client: httpx.AsyncClient, prefix: str, path: str) -> None:
    whole, head = await client.get(prefix + path), await client.head(prefix + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    if path != "/metrics":  # its content changes with each request
        assert head.headers["content-length"] == whole.headers["content-length"]


async def test_head_fails_with_the_same_status_as_get(client: httpx.AsyncClient) -> None:
    for path, status in (("/nowhere", 404), ("/models/unknown", 404), (CHAT, 405)):
        answer = await client.head(path)
        assert (answer.status_code, answer.content) == (status, b"")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_connection_can_be_reused_after_head(live_url: str) -> None:
    async with httpx.AsyncClient(base_url=live_url, limits=httpx.Limits(max_connections=1)) as client:
        for _ in range(3):
            assert (await client.head("/models")).status_code == 200
            assert (await client.get("/models")).json()["object"] == "list"


async def test_head_is_counted_under_its_route(serve) -> None:
    client = await serve()
    await client.head("/models")
    assert 'route="/models",status="200"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/models", {"GET", "HEAD", "OPTIONS"}),
        (CHAT, {"POST", "OPTIONS"}),
        ("/steering_concepts", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/steering_concepts/a", {"GET", "HEAD", "DELETE", "OPTIONS"}),
    ],
)
async def test_options_and_a_405_list_the_allowed_methods(
    client: httpx.AsyncClient, prefix: str, path: str, methods: set[str]
) -> None:
    options = await client.options(prefix + path)
    assert (options.status_code, options.content) == (204, b"")
    refused = await client.patch(prefix + path)
    assert_error(refused, 405, "METHOD_NOT_ALLOWED")
    for answer in (options, refused):
        assert set(answer.headers["allow"].split(", ")) == methods


async def test_options_of_an_unknown_route_is_not_found(client: httpx.AsyncClient) -> None:
    assert_error(await client.options("/nowhere"), 404, "NOT_FOUND")


async def test_every_response_has_security_headers_and_a_request_id(serve) -> None:
    client = await serve(auth=AUTH)
    answers = [
        await client.get("/models"),
        await client.get("/models", headers=BEARER),
        await client.get("/nowhere", headers=BEARER),
        await client.get("/docs"),
        await client.post(CHAT, json=body(), headers=BEARER),
        await client.post(CHAT, json=body(stream=True), headers=BEARER),
    ]
    assert [answer.status_code for answer in answers] == [401, 200, 404, 200, 200, 200]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert len(answer.headers.get_list("x-request-id")) == 1


def preflight(origin: str, method: str = "POST") -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }


def cors_headers(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


async def test_by_default_no_origin_gets_cors_headers(client: httpx.AsyncClient) -> None:
    for answer in (
        await client.options(CHAT, headers=preflight(PAGE)),
        await client.post(CHAT, json=body(), headers={"origin": PAGE}),
    ):
        assert cors_headers(answer) == set()


async def test_a_configured_origin_gets_cors_headers(serve) -> None:
    client = await serve(auth=AUTH, server={"cors_origins": [PAGE]})
    preflighted = await client.options(CHAT, headers=preflight(PAGE))
    assert preflighted.status_code == 200
    assert preflighted.headers["access-control-allow-origin"] == PAGE
    assert "POST" in preflighted.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in preflighted.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflighted.headers
    refused = await client.post(CHAT, json=body(), headers={"origin": PAGE})
    assert_error(refused, 401, "UNAUTHORIZED")
    answered = await client.post(CHAT, json=body(), headers={"origin": PAGE, **BEARER})
    assert answered.status_code == 200
    for answer in (refused, answered):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://other.example", "http://page.example", f"{PAGE}:444", "null"])
async def test_any_other_origin_gets_no_cors_headers(serve, origin: str) -> None:
    client = await serve(server={"cors_origins": [PAGE]})
    assert (await client.options(CHAT, headers=preflight(origin))).status_code == 400
    for answer in (
        await client.options(CHAT, headers=preflight(origin)),
        await client.post(CHAT, json=body(), headers={"origin": origin}),
    ):
        assert "access-control-allow-origin" not in answer.headers


PRIVATE = {"access-control-request-private-network": "true"}


async def test_a_configured_origin_may_call_from_a_public_page(serve) -> None:
    """Chrome asks this when a page of a public address calls a server on a private one."""
    client = await serve(server={"cors_origins": [PAGE]})
    answer = await client.options(CHAT, headers=preflight(PAGE) | PRIVATE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert (
        "access-control-allow-private-network"
        not in (await client.options(CHAT, headers=preflight(PAGE))).headers
    )
    refused = await client.options(CHAT, headers=preflight("https://other.example") | PRIVATE)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


async def test_without_configured_origins_no_page_may_call_from_a_public_address(
    client: httpx.AsyncClient,
) -> None:
    assert cors_headers(await client.options(CHAT, headers=preflight(PAGE) | PRIVATE)) == set()


async def test_all_origins_can_be_allowed(serve) -> None:
    client = await serve(server={"cors_origins": ["*"]})
    answer = await client.get("/models", headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == "*"
