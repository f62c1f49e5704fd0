"""The supervised engine replaces workers that end.

The workers here are scripts that speak the protocol. Files in their directory control what they do.
"""

import asyncio
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from app.errors import ApiError, EngineUnavailable, StartError
from app.workers.supervisor import SupervisedEngine, next_delay, supervise
from app.workers.timing import Timing
from inference.interface.concepts import TrainConcept, TrainingState
from inference.interface.config import EngineConfig
from inference.interface.requests import GenerationRequest
from tests.app.contract.support import until

WORKER = """
import json, os, sys, threading, time
from pathlib import Path
sys.path.insert(0, {root!r})
import zmq
from inference.interface.concepts import *
from inference.interface.protocol import *
from inference.interface.requests import *

def beat():
    while True:
        os.write(1, b".")
        time.sleep(0.05)

socket = zmq.Context().socket(zmq.PAIR)
socket.connect(sys.argv[-1])
here = Path(json.loads(socket.recv())["source"])
with (here / "pids").open("a") as pids:
    pids.write(str(os.getpid()) + "\\n")
if (here / "broken").exists():
    socket.send(encode(StartFailed("no memory")))
    time.sleep(0.1)
    sys.exit(1)
if (here / "slow").exists():
    time.sleep(60)
digest = "0" if (here / "other").exists() else "1"
length = 256 - len((here / "pids").read_text().split())
socket.send(encode(Started(ModelInfo(str(here), length, 300, {{"config.json": (2,)}}, digest, "float32"))))
if not (here / "busy").exists():
    threading.Thread(target=beat, daemon=True).start()
while (here / "busy").exists():
    pass

while True:
    command = decode_command(socket.recv())
    if isinstance(command, GenerationRequest):
        admission = SubmitResult(command.request_id)
        socket.send(encode(StepReport(submit_results=[admission])))
        if command.max_tokens == 1:
            event = TokenEvent(command.request_id, 0, 7, FinishReason.STOP)
            socket.send(encode(StepReport(events=[event])))
    elif isinstance(command, ForgetConcept):
        (here / "forgotten").write_text(command.concept)
    elif isinstance(command, TrainConcept) and not command.background:
        update = TrainingUpdate(command.concept, TrainingState.READY, 1.0)
        socket.send(encode(StepReport(training=[update])))
    elif isinstance(command, ExportVectors):
        result = VectorsResult(command.request_id, GivenVectors((1,), b"abcd"), [2.0])
        socket.send(encode(StepReport(vectors=[result])))
    elif isinstance(command, ReadTexts):
        result = ReadingsResult(command.request_id, command.texts)
        socket.send(encode(StepReport(readings=[result])))
"""

ENDLESS = 99
QUICK = Timing(longest_delay=0.05)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that controls the workers. Temporary files go to a separate directory."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!{sys.executable}\n" + WORKER.format(root=str(Path(__file__).parents[3])))
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    for name in ("model", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "model"


@pytest.fixture
async def engine(directory: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[SupervisedEngine]:
    async with asyncio.timeout(30), supervise(EngineConfig(source=str(directory)), QUICK) as engine:
        yield engine
        caplog.clear()
    assert not any(map(is_running, pids(directory)))
    assert caplog.records == [], "a normal end logs nothing"


def pids(directory: Path) -> list[int]:
    file = directory / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def is_running(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def answer(engine: SupervisedEngine, max_tokens: int = 1) -> list[int]:
    name = next(_names)
    generation = await engine.submit(GenerationRequest(name, [1], max_tokens))
    return [event.token_id async for events in generation for event in events]


_names = map(str, itertools.count())


async def kill_worker(engine: SupervisedEngine, directory: Path) -> None:
    os.kill(pids(directory)[-1], signal.SIGKILL)
    await until(lambda: not engine.available)


async def test_a_killed_workers_requests_fail_and_it_is_replaced(
    engine: SupervisedEngine, directory: Path
) -> None:
    assert await answer(engine) == [7]
    open_requests = [asyncio.create_task(answer(engine, ENDLESS)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await kill_worker(engine, directory)
    for task in open_requests:
        with pytest.raises(EngineUnavailable):
            await task
    with pytest.raises(EngineUnavailable):
        await answer(engine)
    await engine.wait_available()
    assert engine.available
    assert await answer(engine) == [7]
    first, second = pids(directory)
    assert not is_running(first)
    assert is_running(second)


HASTY = replace(QUICK, tick=0.1, frozen=0.4, silent=1.0)


async def test_a_frozen_worker_is_killed_and_replaced(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(30), supervise(EngineConfig(source=str(directory)), HASTY) as engine:
        await asyncio.sleep(1.0)
        task = asyncio.create_task(answer(engine, ENDLESS))
        await asyncio.sleep(0.05)
        os.kill(pids(directory)[0], signal.SIGSTOP)
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(task, 5)
        assert "sent no heartbeat for 0." in caplog.text
        await engine.wait_available()
        assert await answer(engine) == [7]
        first, _ = pids(directory)
        assert not is_running(first)


async def test_a_silent_worker_that_computes_is_given_more_time(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A computation may delay the heartbeat, but not forever."""
    (directory / "busy").touch()
    async with asyncio.timeout(30), supervise(EngineConfig(source=str(directory)), HASTY) as engine:
        with pytest.raises(EngineUnavailable):
            await answer(engine, ENDLESS)
        assert "sent no heartbeat for 1" in caplog.text
        (directory / "busy").unlink()
        await engine.wait_available()


async def test_time_while_this_process_is_stopped_does_not_count_as_silence(
    directory: Path,
) -> None:
    async with asyncio.timeout(30), supervise(EngineConfig(source=str(directory)), HASTY) as engine:
        await asyncio.sleep(0.1)
        os.kill(pids(directory)[0], signal.SIGSTOP)  # both processes stop, as in a paused container
        time.sleep(1.2)  # noqa: ASYNC251 - stops this process
        os.kill(pids(directory)[0], signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert engine.available
        assert len(pids(directory)) == 1


async def test_a_worker_that_is_killed_while_it_starts_is_replaced(
    engine: SupervisedEngine, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "slow").touch()
    await kill_worker(engine, directory)
    await until(lambda: len(pids(directory)) == 2)
    (directory / "slow").unlink()
    os.kill(pids(directory)[1], signal.SIGKILL)
    await engine.wait_available()
    assert "ended while it was starting (status -9)" in caplog.text
    assert await answer(engine) == [7]


async def test_a_worker_that_freezes_while_it_starts_is_replaced(
    engine: SupervisedEngine,
    directory: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.timing = replace(QUICK, tick=0.1, start_silence=0.4)
    (directory / "slow").touch()
    await kill_worker(engine, directory)
    await until(lambda: len(pids(directory)) >= 3)
    assert "the starting worker sent no heartbeat for" in caplog.text
    (directory / "slow").unlink()
    engine.timing = QUICK
    await engine.wait_available()
    assert await answer(engine) == [7]


async def test_a_failed_restart_is_tried_again_until_it_succeeds(
    engine: SupervisedEngine, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "broken").touch()
    await kill_worker(engine, directory)
    await until(lambda: len(pids(directory)) >= 4)
    assert not engine.available
    assert "cannot be started again: no memory" in caplog.text
    (directory / "broken").unlink()
    await engine.wait_available()
    assert await answer(engine) == [7]


async def test_a_worker_with_other_weights_is_refused(
    engine: SupervisedEngine, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "other").touch()
    await kill_worker(engine, directory)
    await until(lambda: len(pids(directory)) >= 3)
    assert not engine.available
    assert "the worker cannot be started again: its model differs from the one that is served" in caplog.text
    (directory / "other").unlink()
    await engine.wait_available()


async def test_the_context_length_may_change_after_a_restart(
    engine: SupervisedEngine, directory: Path
) -> None:
    assert engine.model.context_length == 255
    await kill_worker(engine, directory)
    await engine.wait_available()
    assert engine.model.context_length == 254


async def test_system_errors_do_not_end_the_restart_attempts(
    engine: SupervisedEngine, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = asyncio.Event()

    def fail(**options: object) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", fail)
        await kill_worker(engine, directory)
        await failed.wait()
    await engine.wait_available()
    assert await answer(engine) == [7]


async def test_the_error_of_the_first_worker_is_raised(directory: Path) -> None:
    (directory / "broken").touch()
    with pytest.raises(StartError, match=r"^no memory$"):
        async with supervise(EngineConfig(source=str(directory)), QUICK):
            raise AssertionError("started")
    assert os.listdir(tempfile.gettempdir()) == []


async def test_a_cancelled_start_leaves_no_process_and_no_file(directory: Path) -> None:
    (directory / "slow").touch()

    async def start() -> None:
        async with supervise(EngineConfig(source=str(directory)), QUICK):
            raise AssertionError("started")

    starting = asyncio.create_task(start())
    await until(lambda: pids(directory))
    starting.cancel()
    await asyncio.wait({starting})
    assert not any(map(is_running, pids(directory)))
    assert os.listdir(tempfile.gettempdir()) == []


async def test_a_running_engine_leaves_no_temporary_files(engine: SupervisedEngine, directory: Path) -> None:
    assert os.listdir(tempfile.gettempdir()) == []
    await kill_worker(engine, directory)
    await engine.wait_available()
    assert os.listdir(tempfile.gettempdir()) == []


def training(background: bool = False) -> TrainConcept:
    return TrainConcept("kind", [1], [[1]], [[2]], [[3]], [[4]], background=background)


async def test_a_lost_workers_trainings_fail_and_the_next_one_trains(
    engine: SupervisedEngine, directory: Path
) -> None:
    async def train(command: TrainConcept) -> list[TrainingState]:
        return [update.state async for update in engine.train(command)]

    task = asyncio.create_task(train(training(background=True)))
    await asyncio.sleep(0.05)
    await kill_worker(engine, directory)
    with pytest.raises(EngineUnavailable):
        await task
    with pytest.raises(EngineUnavailable):
        await train(training())
    engine.prioritize("kind")
    await engine.wait_available()
    assert await train(training()) == [TrainingState.READY]


async def test_questions_reach_the_current_worker(engine: SupervisedEngine, directory: Path) -> None:
    assert (await engine.export("kind")).norms == [2.0]
    assert await engine.read("kind", [[1]], [[2, 3]]) == [[2.0, 3.0]]
    await kill_worker(engine, directory)
    for question in (engine.export("kind"), engine.read("kind", [[1]], [[2]])):
        with pytest.raises(EngineUnavailable):
            await question
    await engine.wait_available()
    assert (await engine.export("kind")).norms == [2.0]


async def test_the_next_worker_gets_the_forget_commands_sent_in_between(
    engine: SupervisedEngine, directory: Path
) -> None:
    await kill_worker(engine, directory)
    engine.forget("kind")
    await engine.wait_available()
    await until((directory / "forgotten").exists)
    await until(lambda: (directory / "forgotten").read_text() == "kind")


async def test_a_draining_engine_lets_requests_go_on_and_replaces_no_worker(
    engine: SupervisedEngine, directory: Path
) -> None:
    task = asyncio.create_task(answer(engine, ENDLESS))
    await asyncio.sleep(0.05)
    engine.drain(0.2)
    assert not engine.available
    for refused in (engine.wait_available, lambda: answer(engine)):
        with pytest.raises(EngineUnavailable):
            await refused()
    assert not task.done()
    with pytest.raises(EngineUnavailable):
        await task
    os.kill(pids(directory)[0], signal.SIGKILL)
    await asyncio.sleep(0.3)
    assert len(pids(directory)) == 1


async def test_the_worker_state_counts_restarts(engine: SupervisedEngine, directory: Path) -> None:
    def state() -> tuple[bool, int]:
        [worker] = engine.workers
        return worker.up, worker.restarts

    assert state() == (True, 0)
    await kill_worker(engine, directory)
    assert state() == (False, 0)
    await engine.wait_available()
    assert state() == (True, 1)


def test_the_restart_delay_doubles_for_workers_that_end_early() -> None:
    after = partial(next_delay, timing=Timing())
    delays = list(itertools.accumulate([0.0] * 9, after, initial=0.0))[1:]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert after(60.0, served=3600.0) == 0


@pytest.mark.parametrize(
    "act", [lambda engine: engine.prioritize("kind"), lambda engine: engine.forget("kind")]
)
async def test_commands_without_a_worker_do_no_harm(
    engine: SupervisedEngine, directory: Path, act: Callable[[SupervisedEngine], None]
) -> None:
    await kill_worker(engine, directory)
    act(engine)
    with pytest.raises(ApiError):
        await answer(engine)
    await engine.wait_available()
    assert await answer(engine) == [7]
