"""Routing of requests to replicas, also if some are full, are down or do not know a concept."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from app.errors import ApiError, EngineUnavailable, ErrorCode, InvalidRequest, StartError
from app.telemetry.observation import WorkerState
from app.workers import starting
from app.workers.replicas import Replicas
from app.workers.starting import run_replicas
from inference.interface.concepts import (
    DirectionResult,
    TakeDirection,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.config import EngineConfig
from inference.interface.protocol import ModelInfo
from inference.interface.requests import GenerationRequest, SteeringSpec
from tests.app.fakes import model_info
from tests.app.workers.test_supervisor import WORKER, is_running, pids


@dataclass
class FakeReplica:
    """A worker that admits every request unless `refusal` is set or a concept is unknown."""

    load: int = 0
    name: str = ""
    capacity: int = 100
    free_capacity: int = 100
    restarts: int = 0
    available: bool = True
    started: bool = True
    lost: bool = False
    """It is lost when it is asked for a direction."""
    refusal: ApiError | None = None
    knows: set[str] = field(default_factory=set)
    model: ModelInfo = field(default_factory=lambda: model_info(Path(), 300))
    submitted: list[str] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    restored: asyncio.Event = field(default_factory=asyncio.Event)
    drained: float | None = None

    @property
    def workers(self) -> list[WorkerState]:
        return [WorkerState(self.available, self.restarts)]

    async def submit(self, request: GenerationRequest) -> "FakeReplica":
        self.submitted.append(request.request_id)
        if self.refusal:
            raise self.refusal
        if request.steering and not self.knows.issuperset(request.steering.strengths):
            raise ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, "no such steering concept")
        return self

    async def wait_available(self) -> None:
        await self.restored.wait()
        if not self.available:
            raise EngineUnavailable

    async def train(self, command: TrainConcept) -> AsyncIterator[TrainingUpdate]:
        self.commands.append(("train", command.concept))
        self.knows.add(command.concept)
        yield TrainingUpdate(command.concept, TrainingState.READY, 1.0)

    async def export(self, concept: str) -> VectorsResult:
        self._check(concept, "export")
        return VectorsResult("r", norms=[float(self.load)])

    async def read(self, concept: str, prompts: list[list[int]], texts: list[list[int]]) -> list[list[float]]:
        self._check(concept, "read")
        return [[float(self.load)] for _ in texts]

    async def direction(self, concept: str) -> DirectionResult:
        self.commands.append(("direction", concept))
        if self.lost:
            raise EngineUnavailable
        return DirectionResult("r", b"units" if concept in self.knows else None, b"norms")

    def take_direction(self, command: TakeDirection) -> None:
        self.commands.append(("take", command.concept))
        assert (command.content, command.calibration) == (b"units", b"norms")
        self.knows.add(command.concept)

    def _check(self, concept: str, command: str) -> None:
        self.commands.append((command, concept))
        if self.refusal:
            raise self.refusal
        if concept not in self.knows:
            raise ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, "no such steering concept")

    def prioritize(self, concept: str) -> None:
        self.commands.append(("prioritize", concept))

    def forget(self, concept: str) -> None:
        self.commands.append(("forget", concept))

    def drain(self, seconds: float) -> None:
        self.drained = seconds


def request(prompt: list[int] | None = None, *concepts: str) -> GenerationRequest:
    steering = SteeringSpec(dict.fromkeys(concepts, 1.0)) if concepts else None
    return GenerationRequest("r", prompt or [1], 10, steering=steering)


def prompt(name: int, chunks: int) -> list[int]:
    return [name] * (64 * chunks)


async def test_the_least_loaded_replica_gets_the_request() -> None:
    fakes = [FakeReplica(load=3), FakeReplica(load=1), FakeReplica(load=2)]
    assert await Replicas(fakes).submit(request()) is fakes[1]
    assert [one.submitted for one in fakes] == [[], ["r"], []]


async def test_a_replica_that_has_computed_a_prefix_is_preferred_if_its_load_is_similar() -> None:
    fakes = [FakeReplica(load=1), FakeReplica(load=0)]
    replicas = Replicas(fakes)
    assert await replicas.submit(request(prompt(7, 2))) is fakes[1]
    fakes[1].load = 5
    assert await replicas.submit(request(prompt(7, 2) + prompt(8, 3))) is fakes[1]
    assert await replicas.submit(request(prompt(9, 2))) is fakes[0]
    fakes[1].load = 6
    assert await replicas.submit(request(prompt(7, 2))) is fakes[0]
    fakes[1].load = 1
    assert await replicas.submit(request(prompt(7, 2))) is fakes[0], "it has computed this prefix last"
    assert await replicas.submit(request(prompt(7, 2) + prompt(8, 3))) is fakes[1], (
        "it has computed a longer prefix"
    )


async def test_a_prefix_shorter_than_a_chunk_is_ignored() -> None:
    fakes = [FakeReplica(load=0), FakeReplica(load=1)]
    replicas = Replicas(fakes)
    assert await replicas.submit(request([7] * 63)) is fakes[0]
    fakes[0].load = 2
    assert await replicas.submit(request([7] * 63)) is fakes[1]


async def test_the_oldest_prefixes_are_forgotten() -> None:
    fakes = [FakeReplica(load=0), FakeReplica(load=1)]
    replicas = Replicas(fakes, max_remembered=3)
    for name in range(10):
        await replicas.submit(request(prompt(name, 1)))
    fakes[0].load = 3
    assert await replicas.submit(request(prompt(9, 1))) is fakes[0]
    assert await replicas.submit(request(prompt(1, 1))) is fakes[1]


async def test_a_replica_that_is_down_gets_no_requests() -> None:
    fakes = [FakeReplica(available=False), FakeReplica(load=100)]
    replicas = Replicas(fakes)
    assert await replicas.submit(request()) is fakes[1]
    assert replicas.available
    fakes[1].available = False
    assert not replicas.available
    with pytest.raises(EngineUnavailable):
        await replicas.submit(request())
    assert fakes[0].submitted == []


@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.QUEUE_FULL])
async def test_a_request_that_one_replica_cannot_take_goes_to_the_next(code: ErrorCode) -> None:
    fakes = [FakeReplica(refusal=ApiError(code, "not here")), FakeReplica(load=1)]
    replicas = Replicas(fakes)
    assert await replicas.submit(request()) is fakes[1]
    fakes[1].refusal = ApiError(code, "nor here")
    with pytest.raises(ApiError, match="nor here") as refused:
        await replicas.submit(request())
    assert refused.value.code is code


async def test_a_request_that_every_replica_would_refuse_is_submitted_once() -> None:
    fakes = [
        FakeReplica(refusal=ApiError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long")),
        FakeReplica(load=1),
    ]
    with pytest.raises(ApiError, match="too long"):
        await Replicas(fakes).submit(request())
    assert fakes[1].submitted == []


async def test_a_steered_request_goes_to_the_least_loaded_replica_after_a_training() -> None:
    """Though another one has trained the concept."""
    fakes = [FakeReplica(load=1), FakeReplica(load=0)]
    replicas = Replicas(fakes)
    command = TrainConcept("kind", [1], [[1]], [[2]], [[3]], [[4]])
    assert [update.state async for update in replicas.train(command)] == [TrainingState.READY]
    assert fakes[0].knows == {"kind"}
    assert await replicas.submit(request([1], "kind")) is fakes[1]
    with pytest.raises(ApiError) as refused:
        await replicas.submit(request([1], "rude"))
    assert refused.value.code is ErrorCode.UNKNOWN_STEERING_CONCEPT


async def test_a_worker_gets_the_directions_that_it_does_not_know_from_the_others() -> None:
    fakes = [
        FakeReplica(load=1, knows={"kind", "rude"}),
        FakeReplica(lost=True),
        FakeReplica(load=2, available=False, knows={"odd"}),
        FakeReplica(load=0, knows={"rude"}),
    ]
    replicas = Replicas(fakes)
    assert await replicas.submit(request([1], "kind", "rude")) is fakes[1]
    assert fakes[1].knows == {"kind", "rude"}
    assert ("direction", "rude") not in fakes[2].commands, "it is down"
    fakes[1].load = 9
    assert await replicas.submit(request([1], "kind")) is fakes[3]
    with pytest.raises(ApiError) as refused:
        await replicas.submit(request([1], "odd"))
    assert refused.value.code is ErrorCode.UNKNOWN_STEERING_CONCEPT


async def ask(replicas: Replicas, question: str) -> float:
    """The load of the replica that answers."""
    if question == "export":
        return (await replicas.export("kind")).norms[0]
    return (await replicas.read("kind", [[1]], [[2]]))[0][0]


both_questions = pytest.mark.parametrize("question", ["export", "read"])


@both_questions
async def test_the_least_loaded_replica_that_knows_the_concept_answers_a_question(question: str) -> None:
    fakes = [
        FakeReplica(load=3, knows={"kind"}),
        FakeReplica(load=1),
        FakeReplica(load=2, knows={"kind"}),
        FakeReplica(load=0, knows={"kind"}, available=False),
    ]
    assert await ask(Replicas(fakes), question) == 2.0
    assert [len(fake.commands) for fake in fakes] == [0, 1, 1, 0]


@both_questions
async def test_a_question_that_no_replica_can_answer_is_refused(question: str) -> None:
    with pytest.raises(ApiError) as unknown:
        await ask(Replicas([FakeReplica(), FakeReplica()]), question)
    assert unknown.value.code is ErrorCode.UNKNOWN_STEERING_CONCEPT
    with pytest.raises(EngineUnavailable):
        await ask(Replicas([FakeReplica(available=False), FakeReplica(available=False)]), question)


@both_questions
async def test_a_question_with_a_fault_is_asked_once(question: str) -> None:
    fakes = [FakeReplica(refusal=InvalidRequest("too long")), FakeReplica(load=1, knows={"kind"})]
    with pytest.raises(InvalidRequest, match="too long"):
        await ask(Replicas(fakes), question)
    assert fakes[1].commands == []


@both_questions
async def test_a_question_goes_on_to_the_next_replica_when_one_is_lost(question: str) -> None:
    fakes = [FakeReplica(refusal=EngineUnavailable()), FakeReplica(load=1, knows={"kind"})]
    assert await ask(Replicas(fakes), question) == 1.0


async def test_commands_for_all_reach_all_replicas() -> None:
    fakes = [FakeReplica(), FakeReplica()]
    replicas = Replicas(fakes)
    replicas.prioritize("kind")
    replicas.forget("kind")
    replicas.drain(3.0)
    assert all(one.commands == [("prioritize", "kind"), ("forget", "kind")] for one in fakes)
    assert [one.drained for one in fakes] == [3.0, 3.0]


async def test_training_fails_if_all_replicas_are_down() -> None:
    replicas = Replicas([FakeReplica(available=False), FakeReplica(available=False)])
    training = replicas.train(TrainConcept("kind", [1], [[1]], [[2]], [[3]], [[4]]))
    with pytest.raises(EngineUnavailable):
        await anext(training)


async def test_the_engine_is_available_once_one_replica_is() -> None:
    fakes = [FakeReplica(), FakeReplica()]
    waiting = asyncio.create_task(Replicas(fakes).wait_available())
    await asyncio.sleep(0)
    assert not waiting.done()
    fakes[1].restored.set()
    await asyncio.wait_for(waiting, 5)
    fakes[1].available = False
    with pytest.raises(EngineUnavailable):
        await Replicas(fakes).wait_available()


def test_the_shortest_context_length_applies_to_all() -> None:
    info = model_info(Path(), 300)
    fakes = [
        FakeReplica(
            model=msgspec.structs.replace(info, context_length=length, context_limit=f"limit {length}")
        )
        for length in (9, 7, 8)
    ]
    assert Replicas(fakes).model == fakes[1].model


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!{sys.executable}\n" + WORKER.format(root=str(Path(__file__).parents[3])))
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    return tmp_path


async def test_the_configured_number_of_workers_runs(directory: Path) -> None:
    async with asyncio.timeout(30), run_replicas(EngineConfig(source=str(directory), replicas=3)) as engine:
        running = pids(directory)
        assert len(set(running)) == 3
        assert engine.available
        assert engine.model.context_length == 253
    assert not any(map(is_running, running))


async def test_the_start_fails_if_one_worker_cannot_start(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervise = starting.supervise

    def break_the_others(config: EngineConfig) -> object:
        if config.replica:
            (directory / "broken").touch()
        return supervise(config)

    monkeypatch.setattr(starting, "supervise", break_the_others)
    with pytest.raises(StartError, match=r"^no memory$"):
        async with asyncio.timeout(30), run_replicas(EngineConfig(source=str(directory), replicas=3)):
            raise AssertionError("started")
    assert not any(map(is_running, pids(directory)))


@pytest.mark.parametrize(
    ("count", "threads", "expected"), [(1, None, None), (2, None, 4), (2, 7, 7), (64, None, 1)]
)
async def test_workers_share_the_processors_unless_threads_is_set(
    monkeypatch: pytest.MonkeyPatch, count: int, threads: int | None, expected: int | None
) -> None:
    configs: list[EngineConfig] = []

    class Started(FakeReplica):
        async def __aenter__(self) -> FakeReplica:
            return self

        async def __aexit__(self, *error: object) -> None:
            pass

    def supervise(config: EngineConfig) -> Started:
        configs.append(config)
        return Started()

    monkeypatch.setattr(starting, "supervise", supervise)
    monkeypatch.setattr(starting, "allowed_processors", lambda: 8)
    async with run_replicas(EngineConfig(source="somewhere", threads=threads, replicas=count)):
        assert [config.threads for config in configs] == [expected] * count
        assert [config.replica for config in configs] == list(range(count))


def test_each_worker_has_its_own_state() -> None:
    workers = Replicas([FakeReplica(restarts=1), FakeReplica(available=False, restarts=2)]).workers
    assert [(worker.up, worker.restarts) for worker in workers] == [(True, 1), (False, 2)]


async def test_the_room_is_the_sum_over_available_replicas() -> None:
    one, other = FakeReplica(free_capacity=3), FakeReplica(free_capacity=4)
    replicas = Replicas([one, other])
    assert replicas.free_capacity == 7
    one.available = False
    assert replicas.free_capacity == 4
    other.available = False
    assert replicas.free_capacity == 7, "new requests get UNAVAILABLE, not QUEUE_FULL"


def test_a_request_has_room_in_one_replica() -> None:
    assert Replicas([FakeReplica(capacity=3), FakeReplica(capacity=4)]).capacity == 4


async def test_workers_that_have_not_started_yet_are_left_out() -> None:
    """They were started on their own, and cannot be reached yet."""
    fakes = [FakeReplica(), FakeReplica(available=False, started=False)]
    fakes[0].model = msgspec.structs.replace(model_info(Path(), 300), context_length=64)
    replicas = Replicas(fakes)
    assert replicas.model.context_length == 64
    assert await replicas.submit(request()) is fakes[0]


@dataclass
class Archive:
    """Implements DirectionArchive in memory."""

    directions: dict[str, TakeDirection] = field(default_factory=dict)

    async def get(self, model: ModelInfo, concept: str) -> TakeDirection | None:
        return self.directions.get(concept)

    async def put(self, model: ModelInfo, concept: str, direction: DirectionResult) -> None:
        assert direction.content is not None
        self.directions[concept] = TakeDirection(concept, direction.content, direction.calibration)


def training(concept: str) -> TrainConcept:
    return TrainConcept(concept, [1], [[1]], [[2]], [[3]], [[4]])


async def test_all_servers_let_the_same_worker_train_a_concept() -> None:
    chosen = []
    for names in (("a", "b", "c"), ("c", "a", "b")):
        fakes = [FakeReplica(name=name) for name in names]
        for number in range(20):
            [_] = [update async for update in Replicas(fakes).train(training(str(number)))]
        chosen.append({concept: fake.name for fake in fakes for concept in fake.knows})
    assert chosen[0] == chosen[1]
    assert set(chosen[0].values()) == {"a", "b", "c"}


async def test_what_another_worker_has_trained_is_not_trained_again() -> None:
    fakes = [FakeReplica(name="a"), FakeReplica(name="b")]
    replicas = Replicas(fakes)
    [_] = [update async for update in replicas.train(training("kind"))]
    trainer, other = fakes if fakes[0].knows else reversed(fakes)
    trainer.knows.clear()
    other.knows.add("kind")
    [_] = [update async for update in replicas.train(training("kind"))]
    assert ("take", "kind") in trainer.commands, "it has the direction before it is asked to train"


async def test_a_new_worker_gets_directions_from_the_archive() -> None:
    archive, first = Archive(), FakeReplica(name="a")
    replicas = Replicas([first], archive)
    [_] = [update async for update in replicas.train(training("kind"))]
    assert archive.directions.keys() == {"kind"}
    replicas.remove(replicas.add(FakeReplica()))
    second = FakeReplica(name="b")
    first.available = False
    replicas.add(second)
    assert await replicas.submit(request([1], "kind")) is second
    with pytest.raises(ApiError):
        await replicas.submit(request([1], "rude"))


async def test_workers_can_be_added_and_removed() -> None:
    replicas = Replicas()
    assert not replicas.available
    assert [worker.up for worker in replicas.workers] == [False]
    with pytest.raises(EngineUnavailable):
        await replicas.submit(request())
    waiting = asyncio.create_task(replicas.wait_available())
    first = FakeReplica()
    first.restored.set()
    number = replicas.add(first)
    await asyncio.wait_for(waiting, 5)
    assert await replicas.submit(request(prompt(1, 2))) is first
    second = FakeReplica(load=1)
    replicas.add(second)
    replicas.remove(number)
    assert await replicas.submit(request(prompt(1, 2))) is second
    replicas.remove(number + 1)
    assert replicas.model == second.model, "the last one that was known"
    waiting = asyncio.create_task(replicas.wait_available())
    await asyncio.sleep(0)
    replicas.drain(1.0)
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(waiting, 5)
