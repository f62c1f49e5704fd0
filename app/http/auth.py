"""Authentication: checks access tokens and scopes. Reads only the path and the headers, never the body."""

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
PLAYGROUND_FILES = "/playground/"
"""All paths that begin with this are files of the playground."""
PROBES = frozenset({"/live", "/ready", "/health"})
OPEN_PATHS = frozenset({"/", "/version", "/docs", "/openapi.json"}) | PROBES | PAGE_FILES


class Authenticate:
    """ASGI middleware: answers 401 unless the request has a valid access token.

    Open paths need no access token. If the server has no access tokens at all, every path is open.
    Stores the caller's access token as `caller` in the request's state, or None if none was needed.
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
        """The caller's access token, or None if the path is open. Raises Unauthorized."""
        self._tokens.refresh()
        if not self._tokens.required or self._is_open(unversioned(scope["path"])):
            return None
        token = self._tokens.find(_bearer_token(Headers(scope=scope)))
        if token is None:
            raise Unauthorized("the access token is not valid")
        if token.expires and token.expires <= datetime.now(UTC):
            raise Unauthorized("the access token has expired")
        return token

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(PLAYGROUND_FILES)


def _bearer_token(headers: Headers) -> str:
    """Raises Unauthorized, also if there are two headers: a proxy may have checked the other one."""
    given = headers.getlist("authorization")
    if len(given) > 1:
        raise Unauthorized(f"there must be one Authorization header, got {len(given)}")
    scheme, _, token = "".join(given).partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("the Authorization header must be 'Bearer' and a valid access token")
    return token.strip()


def caller_of(request: Request) -> AccessToken | None:
    """The access token that Authenticate has found; None if none was needed."""
    caller: AccessToken | None = request.state.caller
    return caller


def requires(*scopes: AccessScope) -> Any:
    """A dependency for routes: answers 401 if the access token has none of these scopes."""

    async def check(request: Request) -> None:
        check_scope(request, *scopes)

    return Depends(check)


def check_scope(request: Request, *scopes: AccessScope) -> None:
    """Raises Unauthorized if the access token has none of these scopes."""
    caller = caller_of(request)
    if caller and not set(scopes) & set(caller.scopes):
        raise Unauthorized(f"this access token does not have the scope {' or '.join(scopes)}")


def unversioned(path: str) -> str:
    """The path without the prefix /v1. Every route is served with and without it."""
    if path == "/v1":
        return "/"
    return path.removeprefix("/v1") if path.startswith("/v1/") else path
