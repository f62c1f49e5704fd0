"""The routes for operators and probes: version, liveness, readiness, metrics, and the OpenAPI document."""

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app import __version__
from app.errors import EngineUnavailable
from app.gateway import Gateway, GatewayDep
from app.http.auth import requires
from app.http.openapi import describe
from app.schemas.operations import Health
from app.settings import AccessScope

router = APIRouter(tags=["operations"])


@router.get("/version", response_class=PlainTextResponse, **describe(media_type="text/plain", errors=(500,)))
async def read_version() -> Response:
    """Returns the server's version as plain text. Needs no access token."""
    return PlainTextResponse(__version__)


@router.get("/live", **describe(answer=Health, errors=(500,)))
async def read_liveness() -> Response:
    """Returns 200 while the server's process is well, for liveness probes. Needs no access token.

    The process is also well while the server is stopping and while a worker restarts. A restart from outside
    would end the running requests.
    """
    return _ok()


@router.get("/ready", **describe(answer=Health, errors=(500,)))
async def read_readiness(gateway: GatewayDep) -> Response:
    """Returns 200 while the server accepts requests, for readiness probes. Needs no access token.

    Returns 503 `UNAVAILABLE` while the engines of all models are down, or the server is stopping.
    """
    return _ok_if_available(gateway)


@router.get("/health", **describe(answer=Health, errors=(500,)))
async def read_health(gateway: GatewayDep) -> Response:
    """Returns 200 while the server accepts requests, for load balancers. Needs no access token.

    Returns 503 `UNAVAILABLE` while the engines of all models are down, or the server is stopping.
    """
    return _ok_if_available(gateway)


def _ok_if_available(gateway: Gateway) -> Response:
    if not any(engine.available for engine in gateway.models.engines):
        raise EngineUnavailable
    return _ok()


def _ok() -> Response:
    return Response(msgspec.json.encode(Health()), media_type="application/json")


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    dependencies=[requires(AccessScope.METRICS)],
    **describe(media_type="text/plain"),
)
async def read_metrics(gateway: GatewayDep) -> Response:
    """Returns the server's metrics in Prometheus' text format.

    Returns 401 `UNAUTHORIZED` without a valid access token that has the scope `metrics`, unless the operator
    has opened the metrics to everybody.
    """
    return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
async def read_openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())
