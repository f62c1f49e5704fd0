"""Connections to workers that run on their own, with the test as the workers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from app import __version__
from app.errors import EngineUnavailable
from app.workers.starting import StandingWorkers, connect_workers
from inference.interface import text_files
from inference.interface.protocol import (
    FetchFile,
    FileContent,
    Hello,
    Leaving,
    Ping,
    Report,
    Started,
    StartFailed,
    StepReport,
    decode_message,
    encode,
)
from inference.interface.requests import (
    Abort,
    FinishReason,
    GenerationRequest,
    SubmitResult,
    TokenEvent,
)
from inference.interface.worker_key import WorkerKey
from tests.app.contract.support import until
from tests.app.fakes import model_info, write_model_directory

MODEL = "m"


class Worker:
    """A worker at a Unix socket that answers Hello and FetchFile by itself."""

    def __init__(self, socket: zmq.asyncio.Socket, directory: Path) -> None:
        self.socket = socket
        files = text_files.hash_files(directory)
        self._contents = {sha256: (directory / name).read_bytes() for name, sha256 in files.items()}
        facts = msgspec.structs.replace(model_info(Path(), 300), directory="")
        self.answer: Report = Started(facts, 5, files)
        self.gateway = b""
        self.hellos = 0
        self.pings = 0
        self.sends_files = True
        self.commands: asyncio.Queue[object] = asyncio.Queue()

    async def send(self, report: Report) -> None:
        await self.socket.send_multipart([self.gateway, encode(report)])

    async def run(self) -> None:
        while True:
            self.gateway, frame = await self.socket.recv_multipart()
            match decode_message(frame):
                case Hello(version=version, model=model):
                    assert (version, model) == (__version__, MODEL)
                    self.hellos += 1
                    await self.send(self.answer)
                case FetchFile(sha256=sha256):
                    if self.sends_files:
                        await self.send(FileContent(sha256, self._contents[sha256]))
                case Ping():
                    self.pings += 1
                case command:
                    self.commands.put_nowait(command)

    async def accept(self) -> GenerationRequest:
        """Takes a request."""
        request = await asyncio.wait_for(self.commands.get(), 5)
        assert isinstance(request, GenerationRequest)
        await self.send(StepReport(submit_results=[SubmitResult(request.request_id)]))
        return request


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    write_model_directory(tmp_path / "model")
    return tmp_path / "model"


@asynccontextmanager
async def working(model: Path, address: str) -> AsyncIterator[Worker]:
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind(address)
        worker = Worker(socket, model)
        running = asyncio.create_task(worker.run())
        yield worker
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/worker.sock"


REQUEST = GenerationRequest("r", [1, 2], 1, 1)


async def answer(engine: object, worker: Worker) -> list[int]:
    submitting = asyncio.create_task(engine.submit(REQUEST))  # type: ignore[attr-defined]
    assert await worker.accept() == REQUEST
    await worker.send(StepReport(events=[TokenEvent("r", 0, 7, FinishReason.LENGTH)]))
    return [event.token_id async for events in await submitting for event in events]


async def test_a_request_is_answered_and_the_worker_hears_pings(
    model: Path, address: str, tmp_path: Path
) -> None:
    async with (
        asyncio.timeout(20),
        working(model, address) as worker,
        # The key is only for workers at tcp://.
        connect_workers(MODEL, [address], WorkerKey(*zmq.curve_keypair()), tmp_path / "cache") as engine,
    ):
        assert engine.free_capacity == 5
        assert text_files.hash_files(Path(engine.model.directory)) == text_files.hash_files(model)
        assert await answer(engine, worker) == [7]
        await until(lambda: worker.pings > 0)


async def test_the_server_waits_for_the_worker(
    model: Path, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connecting = connect_workers(MODEL, [address], None, tmp_path / "cache")
    entering = asyncio.create_task(connecting.__aenter__())
    async with asyncio.timeout(20):
        await until(lambda: "nothing answers at this address" in caplog.text)
        async with working(model, address) as worker:
            assert await answer(await entering, worker) == [7]
            await connecting.__aexit__(None, None, None)


async def test_requests_end_with_the_connection_and_the_next_worker_is_found(
    model: Path, address: str, tmp_path: Path
) -> None:
    async with asyncio.timeout(20):
        first = working(model, address)
        worker = await first.__aenter__()
        async with connect_workers(MODEL, [address], None, tmp_path / "cache") as engine:
            submitting = asyncio.create_task(engine.submit(REQUEST))
            await worker.accept()
            generation = await submitting
            await first.__aexit__(None, None, None)
            with pytest.raises(EngineUnavailable):
                async for _ in generation:
                    pass
            assert not engine.available
            async with working(model, address) as worker:
                await until(lambda: engine.available)
                assert await answer(engine, worker) == [7]


async def test_a_worker_that_is_lost_before_it_has_sent_the_tokenizer_is_tried_again(
    model: Path, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connecting = connect_workers(MODEL, [address], None, tmp_path / "cache")
    async with asyncio.timeout(20):
        async with working(model, address) as worker:
            worker.sends_files = False
            entering = asyncio.create_task(connecting.__aenter__())
            await until(lambda: worker.hellos > 0)
            await asyncio.sleep(0.1)
        await until(lambda: "was lost while it sent the tokenizer" in caplog.text)
        async with working(model, address) as worker:
            assert await answer(await entering, worker) == [7]
            await connecting.__aexit__(None, None, None)


async def test_a_worker_that_leaves_gets_no_new_requests(model: Path, address: str, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(20),
        working(model, address) as worker,
        connect_workers(MODEL, [address], None, tmp_path / "cache") as engine,
    ):
        submitting = asyncio.create_task(engine.submit(REQUEST))
        await worker.accept()
        generation = await submitting
        await worker.send(Leaving())
        await until(lambda: not engine.available)
        with pytest.raises(EngineUnavailable):
            await engine.submit(msgspec.structs.replace(REQUEST, request_id="other"))
        await worker.send(StepReport(events=[TokenEvent("r", 0, 7, FinishReason.LENGTH)]))
        assert [event.token_id async for events in generation for event in events] == [7]


async def test_a_server_that_was_dropped_connects_again(model: Path, address: str, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(20),
        working(model, address) as worker,
        connect_workers(MODEL, [address], None, tmp_path / "cache") as engine,
    ):
        await worker.send(StartFailed("the worker has not heard this gateway for too long"))
        await until(lambda: worker.hellos == 2)
        await until(lambda: engine.available)
        assert await answer(engine, worker) == [7]


async def test_a_refusal_is_logged_and_tried_again(
    model: Path, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connecting = connect_workers(MODEL, [address], None, tmp_path / "cache")
    async with asyncio.timeout(20), working(model, address) as worker:
        started, worker.answer = worker.answer, StartFailed("the worker has version 0")
        entering = asyncio.create_task(connecting.__aenter__())
        await until(lambda: "the worker has version 0" in caplog.text)
        worker.answer = started
        assert await answer(await entering, worker) == [7]
        await connecting.__aexit__(None, None, None)


async def test_another_model_at_another_address_is_left_out(
    model: Path, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = f"ipc://{tmp_path}/other.sock"
    async with (
        asyncio.timeout(20),
        working(model, address) as worker,
        connect_workers(MODEL, [address, other], None, tmp_path / "cache") as engine,
        working(model, other) as stranger,
    ):
        assert isinstance(stranger.answer, Started)
        strange = msgspec.structs.replace(stranger.answer.model, weights_digest="0b" * 32)
        stranger.answer = msgspec.structs.replace(stranger.answer, model=strange)
        await until(lambda: stranger.hellos > 0)
        refusal = f"the worker at {other} cannot be used yet: its model differs from the one that is served"
        await until(lambda: refusal in caplog.text)
        assert [state.up for state in engine.workers] == [True, False]
        assert await answer(engine, worker) == [7]


async def test_a_cancelled_request_is_aborted(model: Path, address: str, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(20),
        working(model, address) as worker,
        connect_workers(MODEL, [address], None, tmp_path / "cache") as engine,
    ):
        submitting = asyncio.create_task(engine.submit(REQUEST))
        await worker.accept()
        (await submitting).abort()
        assert await worker.commands.get() == Abort("r")


async def test_the_list_of_workers_may_change(model: Path, address: str, tmp_path: Path) -> None:
    """A worker that has left the list is used as long as it is there."""
    other = f"ipc://{tmp_path}/other.sock"
    async with asyncio.timeout(20), StandingWorkers(MODEL, None, tmp_path / "cache").running() as workers:
        engine = workers.engine
        workers.follow([address])
        async with working(model, address) as worker:
            await engine.wait_available()
            workers.follow([other])
            assert [state.up for state in engine.workers] == [True, False]
            assert await answer(engine, worker) == [7]
        await until(lambda: len(engine.workers) == 1)
        async with working(model, other) as worker:
            await until(lambda: engine.available)
            assert await answer(engine, worker) == [7]
            workers.follow([address, other])
            workers.follow([other])
            await until(lambda: [state.up for state in engine.workers] == [True])
