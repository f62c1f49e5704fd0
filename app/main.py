"""create_app: builds the gateway and its FastAPI app. Knows no defaults and starts no process."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.concepts.concepts import Concepts
from app.concepts.storage import LocalStorage
from app.concepts.store import ConceptStore
from app.errors import ApiError, ErrorCode, shorten
from app.gateway import Gateway
from app.http.auth import Authenticate
from app.http.doorkeeper import ReserveCapacity, TakeTurns
from app.http.errors import ErrorResponse, for_caller
from app.http.middleware import AnswerHead, LimitBody, Observe
from app.http.openapi import build_openapi
from app.limits.access_tokens import load_access_tokens
from app.limits.accounts import LocalAccounts
from app.limits.admission import AdmissionController
from app.models.model import Model
from app.models.models import Models
from app.registry.building import build_client
from app.registry.shared_accounts import SharedAccounts
from app.registry.shared_concepts import ConceptListener, SharedStorage
from app.routes.concept_vectors import IMPORT_PATH
from app.routes.table import ROUTERS, methods_of, route_of
from app.schemas.faults import invalid_request
from app.settings import Settings
from app.telemetry.access_log import log_request
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observer
from app.workers.engine import Engine

_PURPOSE = "this server chats: POST /chat/completions"


def create_app(
    settings: Settings, engines: Mapping[str, Engine], observers: Sequence[Observer] = ()
) -> FastAPI:
    """Builds the app for engines that have started, by the name of their model. `Gateway.add` adds others.

    Each of `observers` is called after each request. Loads each tokenizer from `engine.model.directory`, and
    the concepts from the directories in the settings. Raises StartError if a tokenizer, a chat template or
    the access token file cannot be used.
    """
    access_tokens = load_access_tokens(settings)
    gateway = _build_gateway(settings)
    for model in settings.served_models:
        if model.name in engines:
            gateway.add(gateway.load(model, engines[model.name]))
    app = FastAPI(
        title="Tiller",
        version=__version__,
        openapi_url=None,  # Tiller's own routes serve the document and its page, with and without /v1
        redirect_slashes=False,
        middleware=[
            *_cors(settings.server.cors_origins),
            Middleware(AnswerHead),
            Middleware(
                Observe, metrics=gateway.metrics, route_of=route_of, observers=[*observers, log_request]
            ),
            Middleware(ReserveCapacity, admission=gateway.admission),
            Middleware(Authenticate, tokens=access_tokens, open_metrics=settings.auth.open_metrics),
            Middleware(TakeTurns),
            Middleware(
                LimitBody,
                limit=settings.server.max_body_bytes,
                others={IMPORT_PATH: settings.limits.max_vector_bytes},
            ),
        ],
    )
    for kind in (ApiError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    app.state.gateway = gateway
    for router in ROUTERS:
        app.include_router(router)
        app.include_router(router, prefix="/v1", include_in_schema=False)
    app.openapi = _Document(app, gateway)  # type: ignore[method-assign]
    return app


class _Document:
    """The OpenAPI document. Built again only after another model is loaded."""

    def __init__(self, app: FastAPI, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway
        self._described: list[Model] = []
        self._document: dict[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        loaded = self._gateway.models.loaded
        if not self._document or loaded != self._described:
            sizes = {model.name: model.tokenizer.size for model in loaded}
            self._document = build_openapi(self._app, self._gateway.settings, sizes)
            self._described = loaded
        return self._document


def _build_gateway(settings: Settings) -> Gateway:
    metrics = Metrics()
    models = Models([model.name for model in settings.served_models])
    metrics.watch(lambda: models.workers)
    if settings.registry is not None:
        return _build_sharing(settings, models, metrics)
    store = ConceptStore(settings.shipped_concepts, settings.created_concepts)
    return Gateway(
        settings=settings,
        models=models,
        admission=AdmissionController(lambda: models.engines, LocalAccounts(settings.limits)),
        concepts=Concepts(LocalStorage(store), metrics, settings.limits),
        metrics=metrics,
    )


def _build_sharing(settings: Settings, models: Models, metrics: Metrics) -> Gateway:
    """A gateway that shares limits and concepts with others. Raises StartError."""
    client = build_client(settings, lambda: models.workers)
    storage = SharedStorage(client, ConceptStore(settings.shipped_concepts))
    accounts = SharedAccounts(client, settings.limits)
    concepts = Concepts(storage, metrics, settings.limits)
    client.listener = ConceptListener(concepts)
    return Gateway(
        settings=settings,
        models=models,
        admission=AdmissionController(lambda: models.engines, accounts),
        concepts=concepts,
        metrics=metrics,
        registry=client,
    )


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """CORS middleware for these origins. Access tokens are sent in a header, so credentials stay off."""
    if not origins:
        return []
    exposed = ("Retry-After", "X-Request-Id")
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=exposed,
        )
    ]


async def _answer_error(request: Request, error: Exception) -> Response:
    is_not_allowed = isinstance(error, HTTPException) and error.status_code == 405
    allow = {"Allow": ", ".join(methods_of(request.scope["path"]))} if is_not_allowed else {}
    if is_not_allowed and request.method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    response = ErrorResponse(for_caller(_as_api_error(request, error), request.state.request_id))
    response.headers.update(allow)
    return response


def _as_api_error(request: Request, error: Exception) -> Exception:
    """Maps the exceptions that FastAPI and its router raise to ApiErrors."""
    method, path = request.method, shorten(request.scope["path"])[1:-1]  # without the quotes
    match error:
        case RequestValidationError():
            return invalid_request(error.errors())
        case HTTPException(status_code=404):
            return ApiError(ErrorCode.NOT_FOUND, f"{path} does not exist; {_PURPOSE}")
        case HTTPException(status_code=405):
            return ApiError(ErrorCode.METHOD_NOT_ALLOWED, f"method {method} is not allowed for {path}")
    return error
