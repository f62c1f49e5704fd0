"""A gateway on a real socket in its own thread, for synchronous clients."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from app.main import create_app
from app.server import configure
from app.settings import Settings
from tests.app.fakes import FakeEngine


@contextmanager
def serving(settings: Settings, engine: FakeEngine) -> Iterator[tuple[str, int]]:
    """Serves like `tiller serve`, on a free port. Yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(configure(create_app(settings, {"tiny": engine}), settings.server))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join()
