"""Workers and registries that are started on their own, as processes, and servers that use them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import yaml

from inference.interface.worker_key import create_key
from tests.e2e.conftest import MODEL, Server, serving


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


class Cluster:
    """One configuration, with which any number of workers and servers are started."""

    def __init__(self, config: dict, directory: Path, stack: ExitStack) -> None:
        create_key(directory / "key")
        self.address = free_address()
        model = {**config["model"], "workers": [self.address]}
        cache = os.environ.get("TILLER_CACHE_DIRECTORY", "~/.cache/tiller")
        self.config = {
            **config,
            "model": model,
            "worker_key": str(directory / "key"),
            "cache_directory": cache,
        }
        self._directory = directory
        self._stack = stack
        self._count = 0

    def worker(self, **config: object) -> subprocess.Popen[str]:
        """Starts a worker at the address."""
        engine = {"threads": 1, **self.config["engine"]}
        return self._start("worker", self.address, {**self.config, "engine": engine, **config})

    def registry(self, **config: object) -> subprocess.Popen[str]:
        """Starts a registry at the configured address."""
        return self._start("registry", self.config["registry"], {**self.config, **config})

    def _start(self, what: str, address: str, config: dict) -> subprocess.Popen[str]:
        file = self._directory / f"{what}.yaml"
        file.write_text(yaml.safe_dump(config))
        command = (what, "serve", "--config", str(file), "--listen", address)
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", *command], stderr=subprocess.PIPE, text=True
        )
        self._stack.callback(_end, process)
        return process

    def server(self, **config: object) -> Server:
        """Starts a server with its own data, and waits for it. There must be a worker."""
        self._count += 1
        directory = self._directory / f"server-{self._count}"
        directory.mkdir()
        return self._stack.enter_context(serving({**self.config, **config}, directory))


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(server: Server) -> bool:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return server.post("/chat/completions", body).status_code == 200
