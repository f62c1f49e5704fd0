"""/version, /health, /metrics and /docs."""

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
async def test_health_follows_the_engine(client: httpx.AsyncClient, engine: FakeEngine, prefix: str) -> None:
    assert (await client.get(f"{prefix}/health")).status_code == 200
    engine.available = False
    response = await client.get(f"{prefix}/health")
    assert response.status_code == 503
    assert len(response.content) < 4096
    engine.available = True
    assert (await client.get(f"{prefix}/health")).status_code == 200


async def test_an_engine_that_is_down_leaves_the_other_routes_up(
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
