"""The worker's loop, with an engine in this process and a socket that plays a script."""

import pytest
from transformers import PreTrainedModel

from inference.interface.protocol import encode
from inference.interface.requests import GenerationRequest
from inference.worker import Worker
from tests.inference.conftest import build_driver, request


class Socket:
    """Delivers one command whenever the worker waits without work. Then lets it wait, and ends it."""

    def __init__(self, commands: list[GenerationRequest], waits: int) -> None:
        self._commands = commands
        self._waits = waits
        self._ready: list[bytes] = []
        self.worker: Worker | None = None
        self.sent: list[bytes] = []

    def poll(self, timeout: int) -> bool:
        if timeout and self._commands:
            self._ready.append(encode(self._commands.pop(0)))
        elif timeout:
            self._waits -= 1
            if self._waits == 0 and self.worker is not None:
                self.worker.stop()
        return bool(self._ready)

    def recv(self) -> bytes:
        return self._ready.pop()

    def send(self, message: bytes) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(("waits", "expected"), [(1, 1), (4, 1)])
def test_the_engine_is_checked_once_after_the_last_of_several_requests(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, waits: int, expected: int
) -> None:
    engine = build_driver(llama).engine
    checks: list[int] = []
    socket = Socket([request(f"r{i}", [5, 6], 3) for i in range(3)], waits)
    monkeypatch.setattr(engine, "check_integrity", lambda: checks.append(len(socket.sent)))
    socket.worker = Worker(engine, socket)  # type: ignore[arg-type]
    socket.worker.run()
    assert len(checks) == expected
    assert checks[0] == len(socket.sent), "the check comes after the reports of all requests"
