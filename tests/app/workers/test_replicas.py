"""Which of several workers a request goes to, and what becomes of it when they are full, down or ignorant."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from app.errors import ApiError, EngineUnavailable, ErrorCode, StartError
from app.telemetry.observation import WorkerState
from app.workers import replicas as replicas_module
from app.workers.replicas import Replicas, run_replicas
from inference.interface.config import EngineConfig
from inference.interface.protocol import (
    GenerationRequest,
    ModelInfo,
    SteeringSpec,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
)
from tests.app.fakes import model_info
from tests.app.workers.test_supervisor import WORKER, is_running, pids


@dataclass
class One:
    """A worker that admits everything but what it is told to refuse."""

    load: int = 0
    room: int = 100
    restarts: int = 0
    available: bool = True
    refusal: ApiError | None = None
    knows: set[str] = field(default_factory=set)
    model: ModelInfo = field(default_factory=lambda: model_info(Path(), 300))
    asked: list[str] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    restored: asyncio.Event = field(default_factory=asyncio.Event)
    drained: float | None = None

    @property
    def workers(self) -> list[WorkerState]:
        return [WorkerState(self.available, self.restarts)]

    async def submit(self, request: GenerationRequest) -> "One":
        self.asked.append(request.request_id)
        if self.refusal:
            raise self.refusal
        if request.steering and not self.knows.issuperset(request.steering.concepts):
            raise ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, "no such steering concept")
        return self

    async def wait_available(self) -> None:
        await self.restored.wait()
        if not self.available:
            raise EngineUnavailable

    async def train(self, command: TrainConcept) -> AsyncIterator[TrainingUpdate]:
        self.told.append(("train", command.concept))
        self.knows.add(command.concept)
        yield TrainingUpdate(command.concept, TrainingState.READY, 1.0)

    def prioritize(self, concept: str) -> None:
        self.told.append(("hasten", concept))

    def forget(self, concept: str) -> None:
        self.told.append(("forget", concept))

    def drain(self, seconds: float) -> None:
        self.drained = seconds


def request(prompt: list[int] | None = None, *concepts: str) -> GenerationRequest:
    steering = SteeringSpec(concepts, 1.0) if concepts else None
    return GenerationRequest("r", prompt or [1], 10, steering=steering)


def prompt(name: int, chunks: int) -> list[int]:
    return [name] * (64 * chunks)


async def test_the_one_with_the_least_to_do_is_asked() -> None:
    ones = [One(load=3), One(load=1), One(load=2)]
    assert await Replicas(ones).submit(request()) is ones[1]
    assert [one.asked for one in ones] == [[], ["r"], []]


async def test_what_has_read_the_beginning_of_a_prompt_is_preferred_if_it_has_little_more_to_do() -> None:
    ones = [One(load=1), One(load=0)]
    replicas = Replicas(ones)
    assert await replicas.submit(request(prompt(7, 2))) is ones[1]
    ones[1].load = 5
    assert await replicas.submit(request(prompt(7, 2) + prompt(8, 3))) is ones[1]
    assert await replicas.submit(request(prompt(9, 2))) is ones[0]
    ones[1].load = 6
    assert await replicas.submit(request(prompt(7, 2))) is ones[0]
    ones[1].load = 1
    assert await replicas.submit(request(prompt(7, 2))) is ones[0], "it has read it last"
    assert await replicas.submit(request(prompt(7, 2) + prompt(8, 3))) is ones[1], "it has read more of it"


async def test_short_beginnings_are_no_reason_to_prefer_anyone() -> None:
    ones = [One(load=0), One(load=1)]
    replicas = Replicas(ones)
    assert await replicas.submit(request([7] * 63)) is ones[0]
    ones[0].load = 2
    assert await replicas.submit(request([7] * 63)) is ones[1]


async def test_what_was_read_long_ago_is_forgotten() -> None:
    ones = [One(load=0), One(load=1)]
    replicas = Replicas(ones, max_remembered=3)
    for name in range(10):
        await replicas.submit(request(prompt(name, 1)))
    ones[0].load = 3
    assert await replicas.submit(request(prompt(9, 1))) is ones[0]
    assert await replicas.submit(request(prompt(1, 1))) is ones[1]


async def test_one_that_is_down_is_not_asked() -> None:
    ones = [One(available=False), One(load=100)]
    replicas = Replicas(ones)
    assert await replicas.submit(request()) is ones[1]
    assert replicas.available
    ones[1].available = False
    assert not replicas.available
    with pytest.raises(EngineUnavailable):
        await replicas.submit(request())
    assert ones[0].asked == []


@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.QUEUE_FULL])
async def test_what_one_cannot_take_the_next_is_asked_for(code: ErrorCode) -> None:
    ones = [One(refusal=ApiError(code, "not here")), One(load=1)]
    replicas = Replicas(ones)
    assert await replicas.submit(request()) is ones[1]
    ones[1].refusal = ApiError(code, "nor here")
    with pytest.raises(ApiError, match="nor here") as refused:
        await replicas.submit(request())
    assert refused.value.code is code


async def test_what_no_other_would_take_is_asked_for_once() -> None:
    ones = [One(refusal=ApiError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long")), One(load=1)]
    with pytest.raises(ApiError, match="too long"):
        await Replicas(ones).submit(request())
    assert ones[1].asked == []


async def test_a_steered_request_goes_to_one_that_knows_the_concept() -> None:
    ones = [One(load=1), One(load=0)]
    replicas = Replicas(ones)
    command = TrainConcept("kind", [1], [[2]], [[3]], [[4]])
    assert [update.state async for update in replicas.train(command)] == [TrainingState.READY]
    assert await replicas.submit(request([1], "kind")) is ones[0]
    with pytest.raises(ApiError) as refused:
        await replicas.submit(request([1], "rude"))
    assert refused.value.code is ErrorCode.UNKNOWN_STEERING_CONCEPT


async def test_all_hear_what_concerns_all() -> None:
    ones = [One(), One()]
    replicas = Replicas(ones)
    replicas.prioritize("kind")
    replicas.forget("kind")
    replicas.drain(3.0)
    assert all(one.told == [("hasten", "kind"), ("forget", "kind")] for one in ones)
    assert [one.drained for one in ones] == [3.0, 3.0]
    assert Replicas([One(load=2), One(load=3)]).load == 5


async def test_nobody_trains_when_all_are_down() -> None:
    replicas = Replicas([One(available=False), One(available=False)])
    with pytest.raises(EngineUnavailable):
        replicas.train(TrainConcept("kind", [1], [[2]], [[3]], [[4]]))


async def test_it_is_available_again_with_the_first_that_is() -> None:
    ones = [One(), One()]
    waiting = asyncio.create_task(Replicas(ones).wait_available())
    await asyncio.sleep(0)
    assert not waiting.done()
    ones[1].restored.set()
    await asyncio.wait_for(waiting, 5)
    ones[1].available = False
    with pytest.raises(EngineUnavailable):
        await Replicas(ones).wait_available()


def test_the_shortest_context_holds_for_all() -> None:
    info = model_info(Path(), 300)
    ones = [One(model=msgspec.structs.replace(info, context_length=length)) for length in (9, 7, 8)]
    assert Replicas(ones).model == ones[1].model


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!{sys.executable}\n" + WORKER.format(root=str(Path(__file__).parents[3])))
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    return tmp_path


async def test_as_many_workers_run_as_are_wanted(directory: Path) -> None:
    async with asyncio.timeout(30), run_replicas(EngineConfig(source=str(directory)), 3) as engine:
        running = pids(directory)
        assert len(set(running)) == 3
        assert engine.available
        assert engine.model.context_length == 253
    assert not any(map(is_running, running))


async def test_one_that_cannot_start_keeps_all_from_starting(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervise = replicas_module.supervise

    def break_the_others(config: EngineConfig) -> object:
        if config.replica:
            (directory / "broken").touch()
        return supervise(config)

    monkeypatch.setattr(replicas_module, "supervise", break_the_others)
    with pytest.raises(StartError, match=r"^no memory$"):
        async with asyncio.timeout(30), run_replicas(EngineConfig(source=str(directory)), 3):
            raise AssertionError("started")
    assert not any(map(is_running, pids(directory)))


@pytest.mark.parametrize(
    ("count", "threads", "expected"), [(1, None, None), (2, None, 4), (2, 7, 7), (64, None, 1)]
)
async def test_workers_share_the_processors_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, count: int, threads: int | None, expected: int | None
) -> None:
    configs: list[EngineConfig] = []

    class Started(One):
        async def __aenter__(self) -> One:
            return self

        async def __aexit__(self, *error: object) -> None:
            pass

    def supervise(config: EngineConfig) -> Started:
        configs.append(config)
        return Started()

    monkeypatch.setattr(replicas_module, "supervise", supervise)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    async with run_replicas(EngineConfig(source="somewhere", threads=threads), count):
        assert [config.threads for config in configs] == [expected] * count
        assert [config.replica for config in configs] == list(range(count))


def test_each_worker_has_its_own_numbers() -> None:
    workers = Replicas([One(restarts=1), One(available=False, restarts=2)]).workers
    assert [(worker.up, worker.restarts) for worker in workers] == [(True, 1), (False, 2)]


async def test_there_is_room_while_one_has_some() -> None:
    one, other = One(room=3), One(room=4)
    replicas = Replicas([one, other])
    assert replicas.room == 7
    one.available = False
    assert replicas.room == 4
    other.available = False
    assert replicas.room == 7, "who comes now is told that the engine is down, not that it is full"
