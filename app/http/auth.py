"""Who may call. Decided from path and headers alone, before anything of the body is read."""

from datetime import UTC, datetime
from typing import Any

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Unauthorized
from app.http.errors import ErrorResponse
from app.limits.access_tokens import AccessTokens
from app.settings import AccessScope, AccessToken

PAGE_FILES = frozenset({"/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/favicon.png"})
OPEN_PATHS = frozenset({"/", "/health", "/version", "/docs", "/openapi.json"}) | PAGE_FILES


class Authenticate:
    """ASGI middleware: 401 without a bearer token that is good now. Where there are none, everything is open.

    Leaves the caller's token in the request's state; None: nobody was asked for one.
    """

    def __init__(self, app: ASGIApp, tokens: AccessTokens, open_metrics: bool) -> None:
        self._app = app
        self._tokens = tokens
        self._open_paths = OPEN_PATHS | {"/metrics"} if open_metrics else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope.setdefault("state", {})["caller"] = self._caller(scope)
            except Unauthorized as error:
                await ErrorResponse(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> AccessToken | None:
        """Raises Unauthorized."""
        self._tokens.refresh()
        if not self._tokens.guarded or unversioned(scope["path"]) in self._open_paths:
            return None
        token = self._tokens.find(_bearer_token(Headers(scope=scope)))
        if token is None:
            raise Unauthorized("a valid bearer token is required")
        if token.expires and token.expires <= datetime.now(UTC):
            raise Unauthorized("the access token has expired")
        return token


def _bearer_token(headers: Headers) -> str:
    """Raises Unauthorized. Of two headers, somebody between us might have looked at the other one."""
    given = headers.getlist("authorization")
    if len(given) > 1:
        raise Unauthorized("there must be one Authorization header, not several")
    scheme, _, token = "".join(given).partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("a valid bearer token is required")
    return token.strip()


def caller_of(request: Request) -> AccessToken | None:
    caller: AccessToken | None = request.state.caller
    return caller


def requires(*scopes: AccessScope) -> Any:
    """A route's dependency: 401 for a token that has none of these scopes."""
    needed = " or ".join(scopes)

    async def check(request: Request) -> None:
        caller = caller_of(request)
        if caller and not set(scopes) & set(caller.scopes):
            raise Unauthorized(f"this access token lacks the scope {needed}")

    return Depends(check)


def unversioned(path: str) -> str:
    """Every route is served both bare and under /v1."""
    if path == "/v1":
        return "/"
    return path.removeprefix("/v1") if path.startswith("/v1/") else path
