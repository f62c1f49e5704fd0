"""Admission control for arriving chat requests: reserves capacity, or refuses before any work is done."""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress

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

_GENERATES = "/chat/completions"


class ReserveCapacity:
    """ASGI middleware: reserves capacity for a chat request before any other work, or answers 503.

    Stores the reservation as `reservation` in the request's state. The route resizes it to the number of
    choices, and releases it once the engine counts the choices itself. Doorkeeper may have stored a
    reservation already; this middleware then uses that one. In any case it releases the reservation at the
    end, however the request ends.
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
            await ErrorResponse(error)(scope, receive, send)
            return
        state["reservation"] = reservation
        try:
            await self._app(scope, receive, send)
        finally:
            reservation.release()


class TakeTurns:
    """ASGI middleware: starts chat requests one at a time, and lets all other tasks run between two of them.

    Parsing a chat request and rendering its prompt blocks the event loop for about a millisecond. Without
    turns, many requests that arrive together would block it many times in a row, and no running stream would
    get a token meanwhile.
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
                await asyncio.wait({before})  # unlike `await before`, does not cancel `before` as well
            await asyncio.sleep(0)
        finally:
            turn.set_result(None)


class Doorkeeper:
    """Implements app.http.connection.Door: refuses chat requests before the app if there is no capacity.

    Under overload most requests get this refusal, and every other request, /health included, waits while
    refusals are made. A refusal by the app would cost ten times as much. Access tokens are not checked: it is
    no secret that the server is full. A request that is let in gets its reservation here, because the app
    only runs later: the next request on any connection must already see that the capacity is taken.
    """

    def __init__(
        self,
        admission: AdmissionController,
        metrics: Metrics,
        has_origins: bool,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`has_origins`: CORS is on, so the app must answer browsers, because it adds the CORS headers.

        Each of `observers` is called once for each refused request.
        """
        self._admission = admission
        self._metrics = metrics
        self._has_origins = has_origins
        self._observers = observers

    def is_probe(self, method: bytes, target: bytes) -> bool:
        """A liveness probe that got a 503 would make the orchestrator restart a server that is only busy."""
        return method == b"GET" and unversioned(_path(target)) == "/live"

    def refuse(self, method: bytes, target: bytes, headers: Headers) -> bytes | None:
        if not _generates(method.decode(), _path(target)):
            return None
        if self._has_origins and any(name == b"origin" for name, _ in headers):
            return None
        try:
            self._admission.check_any()
        except ApiError as error:
            return self._refuse(error)
        return None

    def _refuse(self, error: ApiError) -> bytes:
        observation = Observation(uuid.uuid4().hex)
        observation.method, observation.route = "POST", _GENERATES
        observation.status, observation.error = STATUS[error.code], error.code
        # Not at once: the requests that arrived together are all answered first.
        asyncio.get_running_loop().call_soon(self._report, observation, STATUS[error.code])
        headers = {"x-request-id": observation.request_id, "content-security-policy": NO_PAGE}
        return raw_error(error, {**headers, **SECURITY_HEADERS})

    def _report(self, observation: Observation, status: int) -> None:
        self._metrics.count_request(observation.route, status)
        for observe in self._observers:
            observe(observation)

    def accept(self, scope: HTTPScope) -> None:
        """Reserves capacity for a chat request. ReserveCapacity releases it, or answers if there is none."""
        if _generates(scope["method"], scope["path"]):
            with suppress(ApiError):
                scope["state"]["reservation"] = self._admission.reserve()


def _path(target: bytes) -> str:
    return target.partition(b"?")[0].decode("latin-1")


def _generates(method: str, path: str) -> bool:
    """Whether this is a chat request."""
    return method == "POST" and unversioned(path) == _GENERATES
