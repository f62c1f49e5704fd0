"""WorkerEngine on a socket, with the test as the worker at the other end."""

import asyncio
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq
import zmq.asyncio

from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError, StartError
from app.workers import worker_engine
from app.workers.process import run_worker, wait_for_loss
from app.workers.timing import Timing
from app.workers.worker_engine import WorkerEngine, WorkerGeneration
from inference.interface.concepts import (
    ExportVectors,
    ForgetConcept,
    GivenVectors,
    PrioritizeTraining,
    ReadingsResult,
    ReadTexts,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.config import EngineConfig
from inference.interface.protocol import Command, EngineStats, StepReport, decode_command, encode
from inference.interface.requests import (
    Abort,
    Failure,
    FinishReason,
    GenerationRequest,
    RefusalCode,
    SamplingParams,
    SubmitResult,
    TokenEvent,
)
from tests.app.fakes import model_info


class Worker:
    """The worker's end of the socket, and a process that lives until it is killed."""

    def __init__(self, socket: zmq.asyncio.Socket, process: asyncio.subprocess.Process) -> None:
        self.socket = socket
        self.process = process

    async def receive(self) -> Command:
        return decode_command(await asyncio.wait_for(self.socket.recv(), 5))

    async def report(self, **fields: object) -> None:
        await self.socket.send(encode(StepReport(**fields)))  # type: ignore[arg-type]


@pytest.fixture
async def pair() -> AsyncIterator[tuple[WorkerEngine, Worker]]:
    process = await asyncio.create_subprocess_exec("sleep", "60", stdout=asyncio.subprocess.PIPE)
    with zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as near, context.socket(zmq.PAIR) as far:
        near.bind("inproc://worker")
        far.connect("inproc://worker")
        near.linger = far.linger = 0
        engine = WorkerEngine(near, model_info(Path(), 300), capacity=3)
        serving = asyncio.create_task(engine.serve(partial(wait_for_loss, process, Timing())))
        yield engine, Worker(far, process)
        serving.cancel()
        await asyncio.wait({serving})
        if process.returncode is None:
            process.kill()
        await process.wait()


def request(request_id: str = "r", n: int = 1) -> GenerationRequest:
    return GenerationRequest(request_id, [1, 2], 10, n)


async def submitted(pair: tuple[WorkerEngine, Worker], request_id: str = "r", n: int = 1) -> WorkerGeneration:
    engine, worker = pair
    task = asyncio.create_task(engine.submit(request(request_id, n)))
    assert await worker.receive() == request(request_id, n)
    await worker.report(submit_results=[SubmitResult(request_id)])
    return await task


async def collected(generation: WorkerGeneration) -> list[list[int]]:
    return [[event.token_id for event in events] async for events in generation]


async def test_events_arrive_per_step_until_every_choice_has_ended(pair: tuple[WorkerEngine, Worker]) -> None:
    generation = await submitted(pair, n=2)
    _, worker = pair
    await worker.report(events=[TokenEvent("r", 0, 5), TokenEvent("r", 1, 6)])
    await worker.report(events=[TokenEvent("r", 0, 7, FinishReason.LENGTH)])
    await worker.report(events=[TokenEvent("other", 0, 1), TokenEvent("r", 1, 8, FinishReason.STOP)])
    assert await collected(generation) == [[5, 6], [7], [8]]


async def test_requests_do_not_mix(pair: tuple[WorkerEngine, Worker]) -> None:
    one, two = await submitted(pair, "one"), await submitted(pair, "two")
    end = FinishReason.STOP
    await pair[1].report(events=[TokenEvent("two", 0, 2, end), TokenEvent("one", 0, 1, end)])
    assert await asyncio.gather(collected(one), collected(two)) == [[[1]], [[2]]]


@pytest.mark.parametrize("clipped", [{}, {"a1": 1.25, "b2": -0.5}], ids=str)
async def test_a_generation_has_the_strengths_that_the_worker_reduced(
    pair: tuple[WorkerEngine, Worker], clipped: dict[str, float]
) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.submit(request()))
    await worker.receive()
    await worker.report(submit_results=[SubmitResult("r", clipped=clipped)])
    assert (await task).clipped == clipped


@pytest.mark.parametrize("code", RefusalCode)
async def test_a_refusal_is_raised_with_its_code(
    pair: tuple[WorkerEngine, Worker], code: RefusalCode
) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.submit(request()))
    await worker.receive()
    await worker.report(submit_results=[SubmitResult("r", code, "_worker/x")])
    with pytest.raises(ApiError, match="_worker/x") as refused:
        await task
    assert refused.value.code == ErrorCode(code.value)


async def test_a_failure_ends_only_its_request(pair: tuple[WorkerEngine, Worker]) -> None:
    bad, good = await submitted(pair, "bad"), await submitted(pair, "good")
    await pair[1].report(
        events=[TokenEvent("good", 0, 1, FinishReason.STOP)], failures=[Failure("bad", "reason")]
    )
    assert await collected(good) == [[1]]
    with pytest.raises(InternalError, match="reason"):
        await collected(bad)


async def test_an_aborted_choice_yields_no_more_events(pair: tuple[WorkerEngine, Worker]) -> None:
    generation = await submitted(pair, n=2)
    _, worker = pair
    generation.abort(0)
    generation.abort(0)
    assert await worker.receive() == Abort("r", 0)
    await worker.report(events=[TokenEvent("r", 0, 5), TokenEvent("r", 1, 6, FinishReason.STOP)])
    assert await collected(generation) == [[6]]


async def test_aborting_everything_ends_an_iteration_that_waits(pair: tuple[WorkerEngine, Worker]) -> None:
    generation = await submitted(pair, n=2)
    waiting = asyncio.create_task(collected(generation))
    await asyncio.sleep(0)
    generation.abort()
    assert await asyncio.wait_for(waiting, 5) == []
    assert await pair[1].receive() == Abort("r", None)


async def test_every_choice_takes_capacity_until_it_has_ended(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    generation = await submitted(pair, n=2)
    assert engine.free_capacity == 1
    await worker.report(events=[TokenEvent("r", 0, 5, FinishReason.STOP), TokenEvent("r", 0, 5)])
    await generation.first_events
    assert engine.free_capacity == 2
    generation.abort()
    generation.abort()
    assert engine.free_capacity == 3


async def test_a_refused_request_takes_no_capacity(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.submit(request()))
    await worker.receive()
    assert engine.free_capacity == 2
    await worker.report(submit_results=[SubmitResult("r", RefusalCode.QUEUE_FULL)])
    with pytest.raises(ApiError):
        await task
    assert engine.free_capacity == 3


async def test_a_generation_begins_with_its_first_events(pair: tuple[WorkerEngine, Worker]) -> None:
    generation = await submitted(pair)
    assert not generation.first_events.done()
    await pair[1].report(events=[TokenEvent("r", 0, 5)])
    await asyncio.wait_for(generation.first_events, 5)


async def test_a_generation_that_fails_first_never_begins(pair: tuple[WorkerEngine, Worker]) -> None:
    generation = await submitted(pair)
    await pair[1].report(failures=[Failure("r", "reason")])
    with pytest.raises(InternalError, match="reason"):
        await generation.first_events


async def test_leaving_the_iteration_aborts(pair: tuple[WorkerEngine, Worker]) -> None:
    generation = await submitted(pair)
    await pair[1].report(events=[TokenEvent("r", 0, 5)])
    events = generation.__aiter__()
    await anext(events)
    await events.aclose()
    assert await pair[1].receive() == Abort("r", None)


async def test_cancelling_the_wait_for_admission_aborts(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.submit(request()))
    await worker.receive()
    task.cancel()
    await asyncio.wait({task})
    assert await worker.receive() == Abort("r", None)
    await worker.report(submit_results=[SubmitResult("r")], events=[TokenEvent("r", 0, 5)])
    assert await collected(await submitted_after(pair)) == [[7]]


async def test_a_cancel_just_before_the_admission_ends_only_its_request(
    pair: tuple[WorkerEngine, Worker],
) -> None:
    """In one of these rounds, the engine reads the report between the cancel and the abort."""
    engine, worker = pair
    for rounds in range(20):
        task = asyncio.create_task(engine.submit(request()))
        await worker.receive()
        await worker.report(submit_results=[SubmitResult("r")])
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result().abort()
        assert await worker.receive() == Abort("r", None)
        assert await collected(await submitted_after(pair)) == [[7]]
        assert engine.free_capacity == 3
    assert not engine.lost.is_set()


async def submitted_after(pair: tuple[WorkerEngine, Worker]) -> WorkerGeneration:
    generation = await submitted(pair, "later")
    await pair[1].report(events=[TokenEvent("later", 0, 7, FinishReason.STOP)])
    return generation


async def test_a_dead_worker_fails_open_and_new_requests(pair: tuple[WorkerEngine, Worker]) -> None:
    generation = await submitted(pair)
    engine, worker = pair
    waiting = asyncio.create_task(engine.submit(request("waiting")))
    await worker.receive()
    worker.process.kill()
    with pytest.raises(EngineUnavailable):
        await collected(generation)
    with pytest.raises(EngineUnavailable):
        await waiting
    assert not engine.available
    with pytest.raises(EngineUnavailable):
        await engine.submit(request("late"))


async def test_a_worker_that_sends_an_invalid_message_is_given_up(pair: tuple[WorkerEngine, Worker]) -> None:
    generation = await submitted(pair)
    await pair[1].socket.send(b"nonsense")
    with pytest.raises(EngineUnavailable):
        await collected(generation)
    assert not pair[0].available


async def test_a_draining_engine_ends_requests_after_the_time_limit(
    pair: tuple[WorkerEngine, Worker],
) -> None:
    quick, slow = await submitted(pair, "quick"), await submitted(pair, "slow")
    engine, worker = pair
    engine.drain(0.05)
    with pytest.raises(EngineUnavailable):
        await engine.submit(request("new"))
    await worker.report(events=[TokenEvent("quick", 0, 1, FinishReason.STOP)])
    assert await collected(quick) == [[1]]
    with pytest.raises(EngineUnavailable):
        await collected(slow)


@pytest.mark.parametrize(
    ("top_logprobs", "readings", "max_unread"),
    [(None, (), 10), (4, (), 50), (None, ("a",), 20), (2, ("a", "b"), 50)],
)
async def test_an_unread_answer_does_not_grow_without_limit(
    pair: tuple[WorkerEngine, Worker], top_logprobs: int | None, readings: tuple[str, ...], max_unread: int
) -> None:
    engine, worker = pair
    engine.max_unread = max_unread
    sampling = SamplingParams(top_logprobs=top_logprobs)
    wanted = GenerationRequest("r", [1, 2], 100, sampling=sampling, readings=readings)
    task = asyncio.create_task(engine.submit(wanted))
    await worker.receive()
    await worker.report(submit_results=[SubmitResult("r")])
    generation = await task
    for token_id in range(20):
        await worker.report(events=[TokenEvent("r", 0, token_id)])
    assert await worker.receive() == Abort("r", None)
    arrived: list[int] = []
    error: ApiError | None = None
    try:
        async for events in generation:
            arrived += [event.token_id for event in events]
    except ApiError as raised:
        error = raised
    assert error is not None
    assert error.code is ErrorCode.REQUEST_TIMEOUT
    assert arrived == list(range(11))


async def test_an_answer_that_is_read_has_no_limit(
    pair: tuple[WorkerEngine, Worker],
) -> None:
    pair[0].max_unread = 10
    generation = await submitted(pair)
    events = aiter(generation)
    for token_id in range(50):
        await pair[1].report(events=[TokenEvent("r", 0, token_id)])
        assert [event.token_id for event in await anext(events)] == [token_id]
    await events.aclose()


def training(concept: str) -> TrainConcept:
    return TrainConcept(concept, [1], [[1]], [[2]], [[3]], [[4]])


async def trained(pair: tuple[WorkerEngine, Worker], concept: str) -> "asyncio.Task[list[TrainingUpdate]]":
    """Starts a training, and returns a task for its updates once the worker has the command."""
    engine, worker = pair

    async def collect() -> list[TrainingUpdate]:
        return [update async for update in engine.train(training(concept))]

    task = asyncio.create_task(collect())
    assert await worker.receive() == training(concept)
    return task


@pytest.mark.parametrize("end", [TrainingState.READY, TrainingState.FAILED])
async def test_a_training_ends_with_its_last_update(
    pair: tuple[WorkerEngine, Worker], end: TrainingState
) -> None:
    one, two = await trained(pair, "one"), await trained(pair, "two")
    last = [TrainingUpdate("one", end, 1.0), TrainingUpdate("two", end, 1.0)]
    other, first = TrainingUpdate("other", end), TrainingUpdate("one", TrainingState.TRAINING, 0.5)
    await pair[1].report(training=[other, first])
    await pair[1].report(training=last)
    assert await asyncio.gather(one, two) == [[first, last[0]], last[1:]]


async def test_a_training_can_be_prioritized(pair: tuple[WorkerEngine, Worker]) -> None:
    pair[0].prioritize("one")
    assert await pair[1].receive() == PrioritizeTraining("one")


async def test_forgetting_a_concept_ends_its_training_but_not_a_later_one(
    pair: tuple[WorkerEngine, Worker],
) -> None:
    engine, worker = pair
    first = await trained(pair, "one")
    engine.forget("one")
    again = asyncio.create_task(anext(aiter(engine.train(training("one")))))
    assert [update.state for update in await first] == [TrainingState.FAILED]
    assert await worker.receive() == ForgetConcept("one")
    assert await worker.receive() == training("one")
    await worker.report(training=[TrainingUpdate("one", TrainingState.READY, 1.0)])
    assert (await again).state is TrainingState.READY


async def test_forgetting_a_concept_without_a_training_reaches_the_worker(
    pair: tuple[WorkerEngine, Worker],
) -> None:
    pair[0].forget("one")
    assert await pair[1].receive() == ForgetConcept("one")


async def test_a_dead_worker_fails_open_and_new_trainings(pair: tuple[WorkerEngine, Worker]) -> None:
    task = await trained(pair, "one")
    pair[1].process.kill()
    with pytest.raises(EngineUnavailable):
        await task
    with pytest.raises(EngineUnavailable):
        await anext(aiter(pair[0].train(training("two"))))


async def test_a_draining_engine_ends_trainings_after_the_time_limit(
    pair: tuple[WorkerEngine, Worker],
) -> None:
    task = await trained(pair, "one")
    pair[0].drain(0.05)
    with pytest.raises(EngineUnavailable):
        await anext(aiter(pair[0].train(training("two"))))
    with pytest.raises(EngineUnavailable):
        await task


async def test_a_worker_that_ends_at_once_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StartError, match=r"ended while it was starting \(status 1\)"):
        async with run_worker(EngineConfig()):
            raise AssertionError("started")


async def test_the_engine_stats_are_the_latest_reported_ones(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    assert engine.stats == EngineStats()
    generation = await submitted(pair)
    await worker.report(stats=EngineStats(running=1, blocks=8))
    await worker.report(events=[TokenEvent("r", 0, 5, FinishReason.STOP)])
    await collected(generation)
    assert engine.stats == EngineStats(running=1, blocks=8)


async def test_the_time_between_tokens_is_counted_for_each_of_them(
    pair: tuple[WorkerEngine, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, worker = pair
    one, two = await submitted(pair, "one", n=2), await submitted(pair, "two")
    clock = SimpleNamespace(perf_counter=iter([10.0, 10.5, 13.0]).__next__)
    monkeypatch.setattr(worker_engine, "time", clock)
    await worker.report(events=[TokenEvent("one", 0, 1), TokenEvent("one", 1, 1)])
    await worker.report(events=[TokenEvent("one", 0, 1), TokenEvent("one", 1, 1), TokenEvent("two", 0, 1)])
    end = FinishReason.STOP
    await worker.report(
        events=[TokenEvent(name, i, 2, end) for name, i in (("one", 0), ("one", 1), ("two", 0))]
    )
    await asyncio.gather(collected(one), collected(two))
    assert engine.intervals.cumulative[-1] == 5, "a first token has no token before it"
    assert engine.intervals.seconds == 2 * 0.5 + 3 * 2.5


async def test_the_wait_in_the_queue_ends_when_the_first_choice_starts(
    pair: tuple[WorkerEngine, Worker],
) -> None:
    generation = await submitted(pair, n=2)
    assert generation.queue_seconds is None
    await pair[1].report(starts={"r": 3.0, "other": 1.0}, events=[TokenEvent("r", 0, 1)])
    await pair[1].report(starts={"r": 9.0}, events=[TokenEvent("r", i, 2, FinishReason.STOP) for i in (0, 1)])
    await collected(generation)
    assert generation.queue_seconds == 3.0


VECTORS = GivenVectors(blocks=(3,), values=bytes(8))


async def test_each_export_gets_its_own_vectors(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    one, two = (asyncio.create_task(engine.export(name)) for name in ("one", "two"))
    commands = [await worker.receive(), await worker.receive()]
    assert [command.concept for command in commands if isinstance(command, ExportVectors)] == ["one", "two"]
    results = [VectorsResult(command.request_id, VECTORS, [2.0]) for command in commands]
    await worker.report(vectors=[VectorsResult("other", VECTORS), *reversed(results)])
    assert [await one, await two] == results


async def test_each_reading_gets_its_own_numbers(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.read("one", [[1]], [[2, 3]]))
    command = await worker.receive()
    assert isinstance(command, ReadTexts)
    assert command == ReadTexts(command.request_id, "one", [[1]], [[2, 3]])
    await worker.report(
        readings=[ReadingsResult("other", [[9.0]]), ReadingsResult(command.request_id, [[0.5, 1.5]])]
    )
    assert await task == [[0.5, 1.5]]


async def test_cancelling_a_reading_aborts_it(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.read("one", [[1]], [[2, 3]]))
    command = await worker.receive()
    assert isinstance(command, ReadTexts)
    assert engine.load == 1
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert await worker.receive() == Abort(command.request_id)
    assert engine.load == 0


async def test_a_reading_with_a_result_is_not_aborted(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.read("one", [[1]], [[2, 3]]))
    command = await worker.receive()
    assert isinstance(command, ReadTexts)
    await worker.report(readings=[ReadingsResult(command.request_id, [[0.5, 1.5]])])
    assert await task == [[0.5, 1.5]]
    engine.prioritize("next")
    assert await worker.receive() == PrioritizeTraining("next")


async def test_only_callers_that_wait_count_as_readings(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    tasks = [asyncio.create_task(engine.read("one", [[1]], [[2]])) for _ in range(64)]
    for _ in tasks:
        assert isinstance(await worker.receive(), ReadTexts)
    with pytest.raises(ApiError, match="64 readings are in progress") as refused:
        await engine.read("one", [[1]], [[2]])
    assert refused.value.code is ErrorCode.QUEUE_FULL
    assert engine.load == 64
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for _ in tasks:
        assert isinstance(await worker.receive(), Abort)
    later = asyncio.create_task(engine.read("one", [[1]], [[2]]))
    command = await worker.receive()
    assert isinstance(command, ReadTexts)
    await worker.report(readings=[ReadingsResult(command.request_id, [[1.0]])])
    assert await later == [[1.0]]


@pytest.mark.parametrize(
    ("detail", "code"), [("", ErrorCode.UNKNOWN_STEERING_CONCEPT), ("too long", ErrorCode.INVALID_REQUEST)]
)
async def test_texts_that_cannot_be_read_are_refused(
    pair: tuple[WorkerEngine, Worker], detail: str, code: ErrorCode
) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.read("one", [[1]], [[2]]))
    command = await worker.receive()
    assert isinstance(command, ReadTexts)
    await worker.report(readings=[ReadingsResult(command.request_id, None, detail)])
    with pytest.raises(ApiError, match=detail or "no such steering concept: one") as refused:
        await task
    assert refused.value.code is code


async def test_the_vectors_of_an_unknown_concept_are_refused(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    task = asyncio.create_task(engine.export("one"))
    command = await worker.receive()
    assert isinstance(command, ExportVectors)
    await worker.report(vectors=[VectorsResult(command.request_id)])
    with pytest.raises(ApiError, match="no such steering concept: one") as refused:
        await task
    assert refused.value.code is ErrorCode.UNKNOWN_STEERING_CONCEPT


def questions(engine: WorkerEngine) -> "list[asyncio.Task[object]]":
    return [
        asyncio.create_task(engine.export("one")),
        asyncio.create_task(engine.read("one", [[1]], [[2]])),
    ]


async def test_a_dead_worker_fails_open_and_new_questions(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    tasks = questions(engine)
    await worker.receive()
    await worker.receive()
    worker.process.kill()
    for task in tasks:
        with pytest.raises(EngineUnavailable):
            await task
    for task in questions(engine):
        with pytest.raises(EngineUnavailable):
            await task


async def test_a_draining_engine_ends_questions_after_the_time_limit(
    pair: tuple[WorkerEngine, Worker],
) -> None:
    engine, worker = pair
    tasks = questions(engine)
    await worker.receive()
    await worker.receive()
    engine.drain(0.05)
    for task in [*questions(engine), *tasks]:
        with pytest.raises(EngineUnavailable):
            await task


async def test_an_answer_to_a_caller_that_has_left_is_dropped(pair: tuple[WorkerEngine, Worker]) -> None:
    engine, worker = pair
    tasks = questions(engine)
    commands = [await worker.receive(), await worker.receive()]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert await worker.receive() == Abort(commands[1].request_id)
    ids = [command.request_id for command in commands if isinstance(command, ExportVectors | ReadTexts)]
    await worker.report(vectors=[VectorsResult(ids[0], VECTORS)], readings=[ReadingsResult(ids[1], [[1.0]])])
    assert await collected_one(pair) == [[1]], "the engine still works"


async def collected_one(pair: tuple[WorkerEngine, Worker]) -> list[list[int]]:
    generation = await submitted(pair)
    await pair[1].report(events=[TokenEvent("r", 0, 1, FinishReason.STOP)])
    return await collected(generation)
