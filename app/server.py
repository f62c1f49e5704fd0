"""Runs a server: binds the port, starts the workers, serves HTTP, then stops all. Knows no command line."""

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
from rich.console import Console

from app import __version__
from app.errors import StartError
from app.gateway import Gateway
from app.http.connection import MAX_EXCESS_CONNECTIONS, connections_with
from app.http.doorkeeper import Doorkeeper
from app.http.examples import example_chat
from app.http.stalls import cut_stalled
from app.http.tls import load_tls
from app.limits.access_tokens import load_access_tokens
from app.main import create_app
from app.routes.table import route_of
from app.settings import ServerSettings, Settings
from app.startup import RunningModels, run_models
from app.telemetry.access_log import log_refusal, log_request
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observer
from app.telemetry.tracing import start_tracing
from inference.interface.logs import set_up_logging

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_OTHER_FILES = 256
_LONGEST_KEEPALIVE_SECONDS = 32_767
"""The largest value that Linux accepts."""
_DRAIN_MARGIN_SECONDS = 3
"""Time to send the last events after the engine has ended all generations."""


def run(settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM. Raises StartError."""
    set_up_logging(settings.log_config)
    load_access_tokens(settings)  # only to report a mistake in the file before the model is loaded
    tls = load_tls(settings.server.tls) if settings.server.tls else None
    settings = _fit_connections(settings)
    tracing = start_tracing(settings.tracing)
    with (
        closing(tracing) if tracing else nullcontext(),
        bind(settings.server) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        suppress(asyncio.CancelledError),
    ):
        runner.run(_serve(settings, listener, tls, [tracing.observe] if tracing else []))


async def _serve(
    settings: Settings, listener: socket.socket, tls: ssl.SSLContext | None, observers: Sequence[Observer]
) -> None:
    _at_signals(_current_task().cancel)
    app = create_app(settings, {}, observers)
    gateway: Gateway = app.state.gateway
    if gateway.registry:
        gateway.registry.url = _url(settings, listener)
    async with run_models(gateway, _has_terminal(settings)) as models:
        app.openapi()  # builds the document and caches it, so that no request has to wait for it
        config = configure(app, settings.server, tls, [*observers, log_request])
        # The first call of anyio imports much code. Without this one, the first request would wait for it.
        await anyio.lowlevel.checkpoint()
        server = _Server(config, lambda: _welcome(gateway, listener, models.loading))
        _at_signals(lambda: server.stop(models, settings.server.drain_seconds))
        stalls = asyncio.create_task(cut_stalled(server.transports, settings.server.stall_seconds))
        try:
            await server.serve(sockets=[listener])
        finally:
            stalls.cancel()


def _has_terminal(settings: Settings) -> bool:
    """Whether people can see progress bars."""
    console = Console(stderr=True)
    return settings.log.format == "text" and console.is_terminal and not console.is_dumb_terminal


def configure(
    app: FastAPI,
    settings: ServerSettings,
    tls: ssl.SSLContext | None = None,
    observers: Sequence[Observer] = (),
) -> uvicorn.Config:
    """uvicorn's configuration. Each of `observers` is called for each request refused before the app."""
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


def _refusals(metrics: Metrics) -> Callable[[str, str, int], None]:
    """A function that counts and logs a request that is refused before the app knows it."""

    def record(method: str, path: str, status: int) -> None:
        route = route_of(method, path)
        metrics.count_request(route, status)
        log_refusal(method, route, status)

    return record


class _Server(uvicorn.Server):
    """Calls `welcome` once it serves. Installs no signal handlers, so that the workers stop in order."""

    def __init__(self, config: uvicorn.Config, welcome: Callable[[], None]) -> None:
        super().__init__(config)
        self._welcome = welcome
        self._draining: asyncio.Task[None] | None = None

    def transports(self) -> list[asyncio.Transport]:
        """The transports of all open connections."""
        return [connection.transport for connection in self.server_state.connections]

    def stop(self, models: RunningModels, seconds: float) -> None:
        """The first call drains: running requests have `seconds` to end, and new requests get a 503.

        The second call stops the server at once.
        """
        if self._draining is None:
            models.drain(seconds)
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
        if any(listener.fileno() < 0 for listener in sockets or ()):  # uvloop has closed it, without an error
            raise StartError("cannot listen: another process listens at this address and port")
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


def _fit_connections(settings: Settings) -> Settings:
    """The settings with the number of connections that the system allows. Raises StartError."""
    wanted, allowed = settings.server.max_connections, allow_connections(settings.server)
    if allowed == wanted:
        return settings
    _log.warning(
        "server.max_connections is %(allowed)s, not %(wanted)s: the system limits open files (ulimit -n)",
        {"allowed": allowed, "wanted": wanted},
    )
    server = settings.server.model_copy(update={"max_connections": allowed})
    return settings.model_copy(update={"server": server})


def allow_connections(server: ServerSettings) -> int:
    """Raises the limit of open files, since each connection needs one. Returns how many connections fit.

    These are `server.max_connections`. If that is the default, and the system refuses, they may be fewer.
    Raises StartError if the system refuses a configured number.
    """
    wanted, others = server.max_connections, MAX_EXCESS_CONNECTIONS + _OTHER_FILES
    allowed = _allow_files(wanted + others)
    if allowed >= wanted + others:
        return wanted
    if "max_connections" in server.model_fields_set or allowed <= others:
        rule = f"server.max_connections {wanted} needs {wanted + others} open files"
        raise StartError(f"{rule}, and the system allows {allowed} (ulimit -n)")
    return allowed - others


def _allow_files(needed: int) -> int:
    """Raises the limit of open files to `needed`, or as far as the system permits. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed
    for limit in (needed, hard):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return limit
    return soft


def bind(server: ServerSettings) -> socket.socket:
    """A bound socket. It is bound before the model is loaded, so that a port in use is an error at once.

    It listens only once the server runs. Raises StartError.
    """
    host, port = server.host, server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _notice_lost_clients(listener, server.stall_seconds)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _notice_lost_clients(listener: socket.socket, seconds: float) -> None:
    """Turns on TCP keepalive, which finds clients that have vanished. Accepted connections inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        options = {
            socket.TCP_KEEPIDLE: min(math.ceil(seconds / 2), _LONGEST_KEEPALIVE_SECONDS),
            socket.TCP_KEEPINTVL: min(math.ceil(seconds / 8), _LONGEST_KEEPALIVE_SECONDS),
            socket.TCP_KEEPCNT: 4,
        }
        for option, value in options.items():
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _url(settings: Settings, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.server.tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _welcome(gateway: Gateway, listener: socket.socket, loading: list[str]) -> None:
    """Prints the URL and, if a model can chat, a command to try. With JSON logs, it writes a log line."""
    settings = gateway.settings
    url = _url(settings, listener)
    names = ", ".join(model.name for model in gateway.models.loaded)
    if settings.log.format == "json":
        _log.info("serving %(model)s at %(url)s", {"model": names, "url": url})
        return
    later = f" Still loading: {', '.join(loading)}." if loading else ""
    print(f"Tiller {__version__} serves {names} at {url} (API: {url}/docs).{later}", flush=True)
    if chatting := [model.name for model in gateway.models.loaded if model.prompts]:
        token = " -H 'Authorization: Bearer TOKEN'" if settings.has_access_tokens else ""
        body = json.dumps(example_chat(chatting[0]))
        headers = f"{token} -H 'Content-Type: application/json'"
        print(f"Try:\n  curl {url}/chat/completions{headers} -d '{body}'", flush=True)
