"""Places for chats: taken when one comes in, and told to whoever gets none before any work is done for it."""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import HTTPScope

from app.errors import ApiError
from app.http.auth import unversioned
from app.http.connection import Headers
from app.http.errors import STATUS, ErrorResponse, raw_error
from app.http.middleware import NO_PAGE, SECURITY_HEADERS
from app.limits.admission import AdmissionController
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observation, Observer


@dataclass(frozen=True)
class _Route:
    """Stands for the router's own, in what is answered before it."""

    path: str


_GENERATES = _Route("/chat/completions")


class ReserveCapacity:
    """ASGI middleware: a chat takes a place before anything else is done for it, or is told there is none.

    Leaves the place in the request's state, for the route to widen and to hand over. It may be there already.
    """

    def __init__(self, app: ASGIApp, admission: AdmissionController) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _generates(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            reservation = state.setdefault("reservation", None) or self._admission.reserve()
        except ApiError as error:
            scope["route"] = _GENERATES
            await ErrorResponse(error)(scope, receive, send)
            return
        state["reservation"] = reservation
        try:
            await self._app(scope, receive, send)
        finally:
            reservation.release()


class TakeTurns:
    """ASGI middleware: chats are begun one after the other, and between two of them all else has its turn.

    To read a request and to render its prompt takes about a millisecond, in which nobody gets a token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._last: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _generates(scope["method"], scope["path"]):
            before, self._last = self._last, asyncio.get_running_loop().create_future()
            await self._take(before, self._last)
        await self._app(scope, receive, send)

    async def _take(self, before: "asyncio.Future[None] | None", turn: "asyncio.Future[None]") -> None:
        try:
            if before and not before.done():
                await asyncio.wait({before})  # which, unlike `await before`, is cancelled alone
            await asyncio.sleep(0)
        finally:
            turn.set_result(None)


class Doorkeeper:
    """Implements app.http.connection.Door: reserves capacity for a chat, or refuses it, before all else.

    Under a rush that is what most are told, and what /health waits for. An app costs ten times as much.
    Tokens are not looked at: that the server is full, anybody may know.
    """

    def __init__(
        self,
        admission: AdmissionController,
        metrics: Metrics,
        has_origins: bool,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`has_origins`: browsers are let in, and what the app adds to answers for them is needed.

        Whoever is in `observers` hear of each that is turned away.
        """
        self._admission = admission
        self._metrics = metrics
        self._has_origins = has_origins
        self._observers = observers

    def turn_away(self, method: bytes, target: bytes, headers: Headers) -> bytes | None:
        if not _generates(method.decode(), target.partition(b"?")[0].decode("latin-1")):
            return None
        if self._has_origins and any(name == b"origin" for name, _ in headers):
            return None
        try:
            self._admission.check_room(1)
        except ApiError as error:
            return self._refuse(error)
        return None

    def _refuse(self, error: ApiError) -> bytes:
        seen = Observation(uuid.uuid4().hex)
        status = STATUS[error.code]
        seen.method, seen.route, seen.status, seen.error = "POST", _GENERATES.path, status, error.code
        # Soon: first all who have come at the same time get their answer.
        asyncio.get_running_loop().call_soon(self._report, seen, status)
        described = {"x-request-id": seen.request_id, "content-security-policy": NO_PAGE}
        return raw_error(error, {**described, **SECURITY_HEADERS})

    def _report(self, seen: Observation, status: int) -> None:
        self._metrics.count_request(seen.route, status)
        for observe in self._observers:
            observe(seen)

    def let_in(self, scope: HTTPScope) -> None:
        """What it takes, ReserveCapacity frees."""
        if _generates(scope["method"], scope["path"]):
            with suppress(ApiError):
                scope["state"]["reservation"] = self._admission.reserve()


def _generates(method: str, path: str) -> bool:
    return method == "POST" and unversioned(path) == _GENERATES.path
