"""The worker's loop, with an engine in this process and a link that plays a script."""

import pytest
from transformers import PreTrainedModel

from inference.interface.protocol import StepReport
from inference.interface.requests import GenerationRequest
from inference.worker_loop import WorkerLoop
from tests.inference.conftest import build_driver, request


class Link:
    """Delivers one command whenever the worker waits without work. Then lets it wait, and ends it."""

    def __init__(self, commands: list[GenerationRequest], waits: int) -> None:
        self._commands = commands
        self._waits = waits
        self._ready: list[GenerationRequest] = []
        self.loop: WorkerLoop | None = None
        self.sent: list[StepReport] = []

    def poll(self, milliseconds: int) -> bool:
        if milliseconds and self._commands:
            self._ready.append(self._commands.pop(0))
        elif milliseconds:
            self._waits -= 1
            if self._waits == 0 and self.loop is not None:
                self.loop.stop()
        return bool(self._ready)

    def receive(self) -> GenerationRequest:
        return self._ready.pop()

    def leave(self) -> None:
        raise AssertionError("no signal has come")

    def send(self, report: StepReport) -> None:
        self.sent.append(report)


@pytest.mark.parametrize(("waits", "expected"), [(1, 1), (4, 1)])
def test_the_engine_is_checked_once_after_the_last_of_several_requests(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, waits: int, expected: int
) -> None:
    engine = build_driver(llama).engine
    checks: list[int] = []
    link = Link([request(f"r{i}", [5, 6], 3) for i in range(3)], waits)
    monkeypatch.setattr(engine, "check_integrity", lambda: checks.append(len(link.sent)))
    link.loop = WorkerLoop(engine, link)
    link.loop.run()
    assert len(checks) == expected
    assert checks[0] == len(link.sent), "the check comes after the reports of all requests"
