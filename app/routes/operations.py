"""What operators and probes ask for, and the document that describes the API."""

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app import __version__
from app.errors import EngineUnavailable
from app.gateway import GatewayDep
from app.http.auth import requires
from app.http.openapi import describe
from app.schemas.operations import Health
from app.settings import AccessScope

router = APIRouter(tags=["operations"])


@router.get("/version", response_class=PlainTextResponse, **describe(media_type="text/plain", errors=(500,)))
async def read_version() -> Response:
    """The server's version."""
    return PlainTextResponse(__version__)


@router.get("/health", **describe(answer=Health, errors=(500,)))
async def read_health(gateway: GatewayDep) -> Response:
    """200 while requests are served, else 503."""
    if not gateway.engine.available:
        raise EngineUnavailable
    return Response(msgspec.json.encode(Health()), media_type="application/json")


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    dependencies=[requires(AccessScope.METRICS)],
    **describe(media_type="text/plain"),
)
async def read_metrics(gateway: GatewayDep) -> Response:
    """Prometheus' text format."""
    return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
async def read_openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())
