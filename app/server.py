"""One server's life: its port, its worker, its HTTP, in this order, and back. Knows no command line."""

import asyncio
import json
import logging
import math
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
import uvloop
from fastapi import FastAPI

from app import __version__
from app.connection import connections_with
from app.engine import Engine
from app.errors import StartError
from app.gateway import Gateway
from app.main import create_app
from app.settings import Settings
from app.tls import load_tls
from app.worker_engine import run_worker

_BACKLOG = 2048
_DRAIN_MARGIN = 3.0
"""Seconds for the last events to leave once the engine has ended all generations."""


def run(settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM. Raises StartError."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    tls = load_tls(settings.server.tls) if settings.server.tls else None
    with (
        _bind(settings.server.host, settings.server.port) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        suppress(asyncio.CancelledError),
    ):
        runner.run(_serve(settings, listener, tls))


async def _serve(settings: Settings, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    _at_signals(_current_task().cancel)
    async with run_worker(settings.engine_config) as engine:
        app = _start_app(settings, engine)
        config = uvicorn.Config(
            app,
            http=connections_with(settings.server, app.state.gateway.metrics.count_request),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            backlog=_BACKLOG,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            timeout_graceful_shutdown=math.ceil(settings.server.drain_seconds + _DRAIN_MARGIN),
        )
        server = _Server(config, _welcome(settings, listener))

        def stop() -> None:
            engine.drain(settings.server.drain_seconds)
            server.handle_exit(signal.SIGINT, None)

        _at_signals(stop)
        await server.serve(sockets=[listener])


def _start_app(settings: Settings, engine: Engine) -> FastAPI:
    app = create_app(settings, engine)
    gateway: Gateway = app.state.gateway
    if settings.steering.train_at_start:
        gateway.concepts.train_all()
    return app


class _Server(uvicorn.Server):
    """Prints a welcome once it serves; leaves the signals to us, so that the worker is ended in order."""

    def __init__(self, config: uvicorn.Config, welcome: str) -> None:
        super().__init__(config)
        self._welcome = welcome

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._welcome, flush=True)

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


def _bind(host: str, port: int) -> socket.socket:
    """Bound, so that a port in use is found before the model is loaded; it listens once there is one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _welcome(settings: Settings, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.server.tls else "http"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    body = {"model": settings.model.name, "messages": [{"role": "user", "content": "Hello!"}]}
    token = " -H 'Authorization: Bearer TOKEN'" if settings.has_tokens else ""
    return (
        f"Tiller {__version__} serves {settings.model.name} at {url} (API: {url}/docs). Try:\n"
        f"  curl {url}/chat/completions{token} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )
