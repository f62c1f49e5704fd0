"""A gateway over a real socket in a thread of its own, for clients that block."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from app.connection import connections_with
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine


@contextmanager
def serving(settings: Settings, engine: FakeEngine) -> Iterator[tuple[str, int]]:
    """Where it listens: as `tiller serve` does, but on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(settings, engine)
        config = uvicorn.Config(
            app,
            http=connections_with(settings.server, app.state.gateway.metrics.count_request),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join()
