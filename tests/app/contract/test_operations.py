"""The routes /version, /live, /ready, /health, /metrics and /docs."""

import base64
import hashlib
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import app
from tests.app.contract.support import chat
from tests.app.fakes import FakeEngine

prefixes = pytest.mark.parametrize("prefix", ["", "/v1"])


@prefixes
async def test_the_version_is_plain_text(client: httpx.AsyncClient, prefix: str) -> None:
    response = await client.get(f"{prefix}/version")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text == app.__version__


@prefixes
@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_and_readiness_report_whether_the_engine_is_available(
    client: httpx.AsyncClient, engine: FakeEngine, prefix: str, path: str
) -> None:
    answer = await client.get(prefix + path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    engine.available = False
    response = await client.get(prefix + path)
    assert response.status_code == 503
    assert response.json()["code"] == "UNAVAILABLE"
    assert len(response.content) < 4096
    engine.available = True
    assert (await client.get(prefix + path)).status_code == 200


@prefixes
@pytest.mark.parametrize("available", [True, False])
async def test_the_process_is_live_whether_or_not_the_engine_is_available(
    client: httpx.AsyncClient, engine: FakeEngine, prefix: str, available: bool
) -> None:
    engine.available = available
    answer = await client.get(f"{prefix}/live")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_other_routes_work_while_the_engine_is_down(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.available = False
    for path in ("/version", "/models", "/metrics", "/openapi.json"):
        assert (await client.get(path)).status_code == 200


@prefixes
async def test_metrics_are_prometheus_text(client: httpx.AsyncClient, prefix: str) -> None:
    await chat(client)
    await chat(client, temperature=3)
    response = await client.get(f"{prefix}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    samples = [s for family in text_string_to_metric_families(response.text) for s in family.samples]
    assert samples


@prefixes
async def test_docs_are_a_page(client: httpx.AsyncClient, prefix: str) -> None:
    response = await client.get(f"{prefix}/docs")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "openapi.json" in response.text


@prefixes
async def test_the_page_loads_only_files_of_this_server_and_its_policy_forbids_others(
    client: httpx.AsyncClient, prefix: str
) -> None:
    page = await client.get(f"{prefix}/docs")
    assert "//" not in re.sub(r"<!--.*?-->", "", page.text)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for file in (*loaded, "openapi.json"):
        answer = await client.get(str(page.url.join(file)))
        assert (answer.status_code, len(answer.content) > 1000) == (200, True), file
    [script] = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert "http" not in page.headers["content-security-policy"]


async def test_the_pages_files_have_content_types_and_are_cached(client: httpx.AsyncClient) -> None:
    for name, kind in (
        ("swagger-ui-bundle.js", "javascript"),
        ("swagger-ui.css", "css"),
        ("favicon.png", "png"),
    ):
        answer = await client.get(f"/docs/{name}")
        assert kind in answer.headers["content-type"]
        assert "max-age" in answer.headers["cache-control"]
        again = await client.head(f"/docs/{name}")
        assert (again.status_code, again.content) == (200, b"")
    assert (await client.get("/docs/core.py")).status_code == 404
