"""create_app: builds the gateway and its FastAPI app. Knows no defaults and starts no process."""

import logging
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app import __version__
from app.concepts.examples import ExampleEncoder
from app.concepts.readings import TextEncoder
from app.concepts.registry import Concepts
from app.concepts.reports import present
from app.concepts.store import ConceptStore
from app.concepts.texts import ConceptTexts
from app.concepts.trainings import Trainings
from app.concepts.vectors.imported import ServedModel
from app.errors import ApiError, ErrorCode, shorten
from app.gateway import Gateway, fingerprint
from app.http.auth import Authenticate
from app.http.doorkeeper import ReserveCapacity, TakeTurns
from app.http.errors import ErrorResponse, for_caller
from app.http.middleware import AnswerHead, LimitBody, Observe
from app.http.openapi import build_openapi
from app.limits.access_tokens import load_access_tokens
from app.limits.admission import AdmissionController
from app.routes.concept_vectors import IMPORT_PATH
from app.routes.table import ROUTERS, methods_of, route_of
from app.schemas.faults import invalid_request
from app.schemas.models import EndToken
from app.settings import Settings
from app.telemetry.access_log import log_request
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observer
from app.text.end_tokens import find_end_tokens
from app.text.prompts import load_text
from app.text.vocabulary import check_vocabulary
from app.workers.engine import Engine

_log = logging.getLogger(__name__)

_PURPOSE = "this server chats: POST /chat/completions"


def create_app(settings: Settings, engine: Engine, observers: Sequence[Observer] = ()) -> FastAPI:
    """Builds the app for an engine that has started. Each of `observers` is called after each request.

    Loads the tokenizer from `engine.model.directory`, and the concepts from the directories in the settings.
    Raises StartError if the tokenizer, the chat template or the access token file cannot be used.
    """
    access_tokens = load_access_tokens(settings)
    gateway = _build_gateway(settings, engine)
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
    build = partial(build_openapi, app, settings, gateway.tokenizer.size)
    app.openapi = cache(build)  # type: ignore[method-assign]
    return app


def _build_gateway(settings: Settings, engine: Engine) -> Gateway:
    directory = Path(engine.model.directory)
    tokenizer, prompts = load_text(directory, settings.chat_template_file)
    if prompts is None:
        _log.warning("the model has no chat template, so it cannot chat")
    metrics = Metrics()
    model = engine.model
    check_vocabulary(tokenizer, prompts, model.vocab_size)
    end_tokens = find_end_tokens(model.end_token_ids, tokenizer, prompts, model.vocab_size)
    _log_end_tokens(end_tokens)
    texts = ConceptTexts(tokenizer, prompts, model.vocab_size)
    metrics.describe(version=__version__, model=settings.model.name, dtype=model.dtype)
    metrics.watch(lambda: engine.workers)
    return Gateway(
        settings=settings,
        engine=engine,
        admission=AdmissionController(engine, settings.limits),
        tokenizer=tokenizer,
        prompts=prompts,
        end_tokens=end_tokens,
        concepts=_build_concepts(settings, engine, texts, end_tokens, metrics),
        texts_to_read=TextEncoder(texts, model.context_length, settings.limits.max_concept_tokens),
        metrics=metrics,
        system_fingerprint=fingerprint(model),
        started=int(time.time()),
    )


def _log_end_tokens(tokens: list[EndToken]) -> None:
    if tokens:
        listed = "; ".join(f"{token.id} {token.token} ({', '.join(token.sources)})" for token in tokens)
        _log.info("answers end at %(tokens)s", {"tokens": listed})
    else:
        _log.warning("the model names no end token, so answers end only at max_tokens or a stop sequence")


def _build_concepts(
    settings: Settings, engine: Engine, texts: ConceptTexts, end_tokens: list[EndToken], metrics: Metrics
) -> Concepts:
    limits = settings.limits
    stop_token_ids = tuple(token.id for token in end_tokens)
    served = ServedModel.of(settings.model.name, engine.model)
    encoder = ExampleEncoder(
        texts,
        served,
        engine.model.context_length,
        limits.max_concept_tokens,
        stop_token_ids,
        settings.steering.questions,
    )
    store = ConceptStore(settings.shipped_concepts, settings.created_concepts)
    trainings = Trainings(engine, encoder.encode, metrics, encoder.refusal)
    return Concepts(store, trainings, metrics, limits, partial(present, tokenizer=texts.tokenizer))


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
