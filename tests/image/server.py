"""A container with a Tiller server, and requests to it. Needs only Python's standard library."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.image.engine import Engine

MODEL = "smollm2-135m-instruct"
_ANSWER_SECONDS = 300
_READY_SECONDS = 600
_STOP_SECONDS = 90


class ImageError(Exception):
    """The image does not do what it must. The message is one line."""


class Server:
    """A running container. Requests carry the access token."""

    def __init__(self, engine: Engine, name: str, port: int, secret: str) -> None:
        self._engine = engine
        self.name = name
        self._port = port
        self._secret = secret

    @property
    def log(self) -> str:
        return self._engine.log_of(self.name)

    def request(self, method: str, path: str, body: Any = None, secret: str | None = None) -> tuple[int, Any]:
        """Status and content. OSError if nothing listens."""
        connection = self._send(method, path, body, self._secret if secret is None else secret)
        with contextlib.closing(connection):
            answer = connection.getresponse()
            content = answer.read()
            is_json = "json" in answer.getheader("content-type", "")
            return answer.status, json.loads(content) if is_json else content.decode()

    def statuses(self, *paths: str) -> dict[str, int]:
        """The status of each path, for a caller without an access token."""
        return {path: self.request("GET", path, secret="")[0] for path in paths}

    def events(self, body: Any) -> Iterator[str]:
        """The data of each event of a streamed chat."""
        connection = self._send("POST", "/v1/chat/completions", {**body, "stream": True}, self._secret)
        with contextlib.closing(connection):
            answer = connection.getresponse()
            if answer.status != 200:
                raise ImageError(f"a streamed chat got {answer.status}: {answer.read()[:300]!r}")
            for line in answer:
                if line.startswith(b"data: "):
                    yield line.removeprefix(b"data: ").decode().strip()

    def wait_until_ready(self) -> float:
        """How many seconds it has taken. Raises ImageError."""
        start = time.monotonic()
        while time.monotonic() - start < _READY_SECONDS:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/ready")[0] == 200:
                    return time.monotonic() - start
            if self._state() != "running":
                raise ImageError(f"the server has ended: {self._last_line()}")
            time.sleep(0.3)
        raise ImageError(f"the server is not ready after {_READY_SECONDS} s: {self._last_line()}")

    def signal(self) -> None:
        """SIGTERM, as Kubernetes and `docker stop` send it."""
        self._engine.run("kill", "--signal=TERM", self.name)

    def wait_for_end(self) -> int:
        """The exit status. Raises ImageError."""
        deadline = time.monotonic() + _STOP_SECONDS
        while self._state() == "running":
            if time.monotonic() > deadline:
                raise ImageError(f"the server has not ended {_STOP_SECONDS} s after SIGTERM")
            time.sleep(0.2)
        return int(self._engine.run("inspect", "--format={{.State.ExitCode}}", self.name))

    def _state(self) -> str:
        return self._engine.run("inspect", "--format={{.State.Status}}", self.name)

    def _last_line(self) -> str:
        return (self.log.strip().splitlines() or ["it has logged nothing"])[-1][:500]

    def _send(self, method: str, path: str, body: Any, secret: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS)
        headers = {"content-type": "application/json"} if body is not None else {}
        headers |= {"authorization": f"Bearer {secret}"} if secret else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(
    engine: Engine, image: str, name: str, token: tuple[str, str], options: Sequence[str]
) -> Iterator[Server]:
    """A server in a container, which is removed at the end. `token`: secret, and JSON for its setting."""
    secret, entries = token
    port = free_port()
    variables = {
        "TILLER_SERVER__HOST": "127.0.0.1",
        "TILLER_SERVER__PORT": port,
        "TILLER_AUTH__TOKENS": entries,
    }
    variables |= {"TILLER_SERVER__DRAIN_SECONDS": 60}
    environment = [f"--env={key}={value}" for key, value in variables.items()]
    try:
        engine.start(image, name, [*environment, *options])
        yield Server(engine, name, port, secret)
    finally:
        engine.remove(name)
