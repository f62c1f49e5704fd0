"""One server's life: its port, its worker, its HTTP, in this order, and back. Knows no command line."""

import asyncio
import json
import logging
import math
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress

import anyio
import anyio.lowlevel
import uvicorn
import uvloop
from fastapi import FastAPI

from app import __version__
from app.errors import StartError
from app.gateway import Gateway
from app.http.connection import TOLD_CONNECTIONS, connections_with
from app.http.doorkeeper import Doorkeeper
from app.http.stalls import cut_stalled
from app.http.tls import load_tls
from app.limits.access_tokens import load_access_tokens
from app.main import create_app
from app.settings import ServerSettings, Settings
from app.telemetry.access_log import log_refusal, log_request
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observer
from app.telemetry.tracing import start_tracing
from app.workers.engine import Engine
from app.workers.replicas import Replica, run_replicas
from inference.interface.logs import set_up_logging

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_OTHER_FILES = 256
_LONGEST_KEEPALIVE_SECONDS = 32_767
"""That Linux takes."""
_DRAIN_MARGIN_SECONDS = 3
"""For the last events to leave once the engine has ended all generations."""


def run(settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM. Raises StartError."""
    set_up_logging(settings.engine_config.log)
    load_access_tokens(settings)  # only so that a mistake in the file is told before the model is loaded
    tls = load_tls(settings.server.tls) if settings.server.tls else None
    _allow_files(settings.server.max_connections)
    tracing = start_tracing(settings.tracing, settings.model.name)
    with (
        closing(tracing) if tracing else nullcontext(),
        _bind(settings.server) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        suppress(asyncio.CancelledError),
    ):
        runner.run(_serve(settings, listener, tls, [tracing.observe] if tracing else []))


async def _serve(
    settings: Settings, listener: socket.socket, tls: ssl.SSLContext | None, observers: Sequence[Observer]
) -> None:
    _at_signals(_current_task().cancel)
    async with run_replicas(settings.engine_config, settings.engine.replicas) as engine:
        app = _start_app(settings, engine, observers)
        config = configure(app, settings.server, tls, [*observers, log_request])
        await anyio.lowlevel.checkpoint()  # which loads much; the first request would wait for that
        server = _Server(config, lambda: _welcome(settings, listener))
        _at_signals(lambda: server.stop(engine, settings.server.drain_seconds))
        stalls = asyncio.create_task(cut_stalled(server.transports, settings.server.stall_seconds))
        try:
            await server.serve(sockets=[listener])
        finally:
            stalls.cancel()


def configure(
    app: FastAPI,
    settings: ServerSettings,
    tls: ssl.SSLContext | None = None,
    observers: Sequence[Observer] = (),
) -> uvicorn.Config:
    """How the app is served. `observers` hear of requests that are answered before they come to it."""
    gateway: Gateway = app.state.gateway
    doorkeeper = Doorkeeper(gateway.admission, gateway.metrics, bool(settings.cors_origins), observers)
    return uvicorn.Config(
        app,
        http=connections_with(settings, _refusals(gateway.metrics), doorkeeper),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        backlog=_BACKLOG,
        timeout_keep_alive=settings.keepalive_seconds,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        timeout_graceful_shutdown=_DRAIN_MARGIN_SECONDS,
    )


def _refusals(metrics: Metrics) -> Callable[[str, int], None]:
    """Tells of what never became a request."""

    def tell(route: str, status: int) -> None:
        metrics.count_request(route, status)
        log_refusal(status)

    return tell


def _start_app(settings: Settings, engine: Engine, observers: Sequence[Observer]) -> FastAPI:
    app = create_app(settings, engine, observers)
    gateway: Gateway = app.state.gateway
    if settings.steering.train_at_start:
        gateway.concepts.train_all()
    return app


class _Server(uvicorn.Server):
    """Says that it serves, once it does; leaves the signals to us, so that the worker is ended in order."""

    def __init__(self, config: uvicorn.Config, welcome: Callable[[], None]) -> None:
        super().__init__(config)
        self._welcome = welcome
        self._draining: asyncio.Task[None] | None = None

    def transports(self) -> list[asyncio.Transport]:
        """Of all connections."""
        return [connection.transport for connection in self.server_state.connections]

    def stop(self, engine: Replica, seconds: float) -> None:
        """The first time, what runs may end; until then, what is new is told that nothing is served any more.

        The second time, it ends at once.
        """
        if self._draining is None:
            engine.drain(seconds)
            self._draining = asyncio.create_task(self._drain(seconds))
        else:
            self.should_exit = self.force_exit = True

    async def _drain(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.server_state.tasks:  # noqa: ASYNC110 - uvicorn has no event to wait for
                    await asyncio.sleep(0.05)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._welcome()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _at_signals(act: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, act)


def _current_task() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type checker
    return task


def _allow_files(connections: int) -> None:
    """Each is an open file, of which many systems allow few unless they are asked. Raises StartError."""
    needed = connections + TOLD_CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (ValueError, OSError):
            rule = f"server.max_connections {connections} needs {needed} open files"
            raise StartError(f"{rule}, and the system allows {hard} (ulimit -n)") from None


def _bind(server: ServerSettings) -> socket.socket:
    """Bound, so that a port in use is found before the model is loaded; it listens once there is one."""
    host, port = server.host, server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_lost_clients(listener, server.stall_seconds)
        listener.bind(address)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _notice_lost_clients(listener: socket.socket, seconds: float) -> None:
    """Has the system ask after clients that it hears nothing of. Accepted connections inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        asks = {
            socket.TCP_KEEPIDLE: min(math.ceil(seconds / 2), _LONGEST_KEEPALIVE_SECONDS),
            socket.TCP_KEEPINTVL: min(math.ceil(seconds / 8), _LONGEST_KEEPALIVE_SECONDS),
            socket.TCP_KEEPCNT: 4,
        }
        for option, value in asks.items():
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _welcome(settings: Settings, listener: socket.socket) -> None:
    """For people, who start with a copy of it; where only machines read, a line in the log."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.server.tls else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    if settings.log.format == "json":
        _log.info("serving %(model)s at %(url)s", {"model": settings.model.name, "url": url})
        return
    body = {"model": settings.model.name, "messages": [{"role": "user", "content": "Hello!"}]}
    token = " -H 'Authorization: Bearer TOKEN'" if settings.has_tokens else ""
    print(
        f"Tiller {__version__} serves {settings.model.name} at {url} (API: {url}/docs). Try:\n"
        f"  curl {url}/chat/completions{token} -H 'Content-Type: application/json' -d '{json.dumps(body)}'",
        flush=True,
    )
