"""The gateway benchmark: its engines, its load client and its figures. The tests do not measure time."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from app import startup
from app.bench.client import BenchError
from app.workers.engine import Engine
from benchmarks.gateway.__main__ import parse_points
from benchmarks.gateway.client import Connection, LoadError, http_request
from benchmarks.gateway.figures import (
    Load,
    Point,
    RequestFigures,
    RushFigures,
    StreamFigures,
    fit,
    line_table,
    request_table,
    rush_table,
    stream_table,
    to_json,
)
from benchmarks.gateway.model import CONTEXT_LENGTH
from benchmarks.gateway.script import TEXT, Script
from benchmarks.gateway.server import DEFAULT_ENGINES, use
from benchmarks.gateway.steps import StepClock, open_pipe, take
from benchmarks.resources import MIB, find_server, processor_seconds, usage
from inference.interface.config import EngineConfig
from inference.interface.requests import FinishReason, GenerationRequest, TokenEvent
from tests.app.fakes import write_model_directory

LENGTH = FinishReason.LENGTH


# The answers of the stand-in engines.


def test_each_stream_gets_the_text_from_its_beginning() -> None:
    script = Script([7, 8])
    script.add(GenerationRequest("a", [1], 3))
    assert script.step() == [TokenEvent("a", 0, 7)]
    script.add(GenerationRequest("b", [1], 9))
    assert script.step() == [TokenEvent("a", 0, 8), TokenEvent("b", 0, 7)]
    assert script.step() == [TokenEvent("a", 0, 7, LENGTH), TokenEvent("b", 0, 8)]
    assert script.step() == [TokenEvent("b", 0, 7)]


@pytest.mark.parametrize(("index", "others"), [(None, []), (0, [1]), (1, [0])])
def test_an_aborted_choice_gets_no_more_tokens(index: int | None, others: list[int]) -> None:
    script = Script([7])
    script.add(GenerationRequest("a", [1], 9, n=2))
    script.abort("a", index)
    script.abort("unknown", index)
    assert [event.index for event in script.step()] == others


# The clock of the steps.


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    file = tmp_path / "steps"
    os.mkfifo(file)
    return file


@pytest.fixture
def steps(pipe: Path) -> Iterator[int]:
    end = open_pipe(pipe)
    yield end
    os.close(end)


def test_without_an_interval_steps_stay_a_little_ahead_of_arrivals(pipe: Path, steps: int) -> None:
    clock = StepClock(pipe, 0, streams=3)
    clock.arrive(100)  # before the start
    clock.start()
    assert take(steps) == 2
    clock.arrive(1)
    assert take(steps) == 1
    clock.arrive(2)
    assert take(steps) == 0
    clock.arrive(1)
    assert take(steps) == 1
    clock.stop()
    assert take(steps) == 0


async def test_with_an_interval_steps_go_on_until_the_clock_stops(pipe: Path, steps: int) -> None:
    clock = StepClock(pipe, 0.001)
    clock.start()
    while clock.steps < 3:
        clock.arrive(1)
        await asyncio.sleep(0.001)
    clock.stop()
    assert take(steps) == clock.steps
    await asyncio.sleep(0.005)
    assert take(steps) == 0


# The stand-in engines.


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    tokenizer = write_model_directory(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": tokenizer.get_vocab_size()}))
    return tmp_path


@pytest.fixture(params=DEFAULT_ENGINES)
async def engine(request: pytest.FixtureRequest, model_directory: Path, pipe: Path) -> AsyncIterator[Engine]:
    """A stand-in engine, started as the server starts its engine."""
    with use(request.param, model_directory, pipe):
        async with startup.run_replicas(EngineConfig()) as engine:
            yield engine


async def test_an_engine_sends_a_token_per_requested_step(engine: Engine, pipe: Path) -> None:
    assert engine.available
    assert engine.model.context_length == CONTEXT_LENGTH
    generation = await engine.submit(GenerationRequest("a", [1], 3))
    aborted = await engine.submit(GenerationRequest("b", [1], 3))
    aborted.abort()
    pen = os.open(pipe, os.O_WRONLY)
    os.write(pen, b"...")
    os.close(pen)
    steps = [events async for events in generation]
    assert [len(events) for events in steps] == [1, 1, 1]
    assert [event.finish_reason for [event] in steps] == [None, None, LENGTH]


def test_the_text_can_be_sent_token_by_token() -> None:
    assert TEXT.isascii()


# The load client.


class Wire(asyncio.Transport):
    """Records what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True


class Counted:
    """A connection, and the number of events that it has reported."""

    def __init__(self) -> None:
        self.events = 0
        self.connection = Connection(b"request", self._count)
        self.wire = Wire()
        self.connection.connection_made(self.wire)

    def _count(self, number: int) -> None:
        self.events += number


STREAM = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n" + b"12\r\ndata: 2\n\ndata: 3\n\n\r\n" + b"0\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_events_are_counted_wherever_the_stream_is_split(size: int) -> None:
    counted = Counted()
    for start in range(0, len(STREAM), size):
        counted.connection.data_received(STREAM[start : start + size])
    assert counted.events == 3
    assert counted.connection.answers == 1


async def test_a_request_is_sent_again_after_each_answer_until_the_connection_is_closed() -> None:
    counted = Counted()
    counted.connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    assert counted.wire.written == [b"request", b"request"]
    counted.connection.close()
    counted.connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    assert counted.wire.written == [b"request", b"request"]
    counted.connection.connection_lost(None)
    await counted.connection.ended
    assert counted.wire.closed


@pytest.mark.parametrize("data", [b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", b""])
async def test_a_refusal_and_a_closed_connection_are_errors(data: bytes) -> None:
    counted = Counted()
    counted.connection.data_received(data)
    counted.connection.connection_lost(None)
    with pytest.raises(LoadError, match="503" if data else "closed"):
        await counted.connection.ended


def test_a_request_has_its_content_length() -> None:
    head, _, body = http_request("/chat/completions", b'{"a": 1}').partition(b"\r\n\r\n")
    assert head.startswith(b"POST /chat/completions HTTP/1.1\r\n")
    assert b"Content-Length: 8" in head
    assert body == b'{"a": 1}'


# Figures.


def request_figures(tokens: int, cpu: float, streamed: bool = True) -> RequestFigures:
    return RequestFigures("worker", streamed, tokens, Load(2, cpu, 0.1), requests=100)


def test_the_cost_of_a_request_is_separated_from_the_cost_of_its_tokens() -> None:
    rows = [request_figures(1, 0.21), request_figures(11, 0.31), request_figures(21, 0.41)]
    [line] = fit([*rows, request_figures(1, 0.1, streamed=False)])
    assert (line.engine, line.streamed) == ("worker", True)
    assert (line.per_request, line.per_token) == (pytest.approx(0.002), pytest.approx(0.0001))
    assert "| worker | streamed | 2000 | 100 |" in line_table([line])
    assert "| worker | streamed | 1 | 50 | 2100 | 0.10 |" in request_table(rows)


def test_the_cost_of_a_token_is_the_gateways_cpu_time() -> None:
    row = StreamFigures(
        "worker", Point(64, 0.05), Load(4, 0.4, 0.2), 4000, [0.001, 0.003], 100 * MIB, 164 * MIB, 120 * MIB
    )
    assert row.seconds_per_token == pytest.approx(1e-4)
    cells = "| worker | 64 | 50 | 1000 | 100 | 0.10 | 0.05 | 2.0 | 3.0 | 2 | 100.0 | 164.0 | 120.0 |"
    assert cells in stream_table([row])
    kept = json.loads(to_json([row], [request_figures(1, 0.1)], {"prompt_tokens": 130}))
    assert kept["streams"][0]["tokens_per_second"] == 1000
    assert kept["lines"] == []


def test_without_tokens_the_cost_per_token_is_empty() -> None:
    row = StreamFigures("worker", Point(1, 0), Load(1, 0.1, 0), 0, [], 0, 0, 0)
    assert "| worker | 1 | 0 | 0 | – | 0.10 | 0.00 | – | – | 0 |" in stream_table([row])


def test_a_line_needs_two_answer_lengths() -> None:
    assert fit([request_figures(1, 0.1), request_figures(1, 0.2)]) == []


@pytest.mark.parametrize("text", ["", "64", "64@", "x@1", "0@1", "1@-1", "1@nan", "1@2@3", "1@1,"])
def test_invalid_points_are_refused(text: str) -> None:
    with pytest.raises(BenchError, match="must"):
        parse_points(text)


def test_points_are_streams_and_milliseconds() -> None:
    assert parse_points("64@50,1000@0.5") == [Point(64, 0.05), Point(1000, 0.0005)]


# Resources.


def test_a_server_is_found_by_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert find_server(port).pid == os.getpid()
    with pytest.raises(LookupError, match=str(port)):
        find_server(port)


def test_the_cpu_time_of_a_process() -> None:
    assert processor_seconds(os.getpid()) > 0
    with pytest.raises(OSError, match="argument"):
        processor_seconds(2**22 + 1)


def test_usage_is_the_sum_over_processes() -> None:
    one = usage([psutil.Process()])
    assert one.rss_bytes > MIB
    assert one.open_files >= 3
    assert usage([]).threads == 0


def test_a_rush_is_a_row_of_the_table() -> None:
    row = RushFigures(64, 10, 64, True, [0.001, 0.003], [], 0, [0.0005], [0.002])
    cells = [cell.strip() for cell in rush_table([row]).splitlines()[2].strip("|").split("|")]
    refused, client, health = ["2", "2.0", "3.0", "0", "–", "–", "0"], ["0.5", "0.5"], ["2.0", "2.0", "1"]
    assert cells == ["64", "640", "64", "yes", *refused, *client, *health]
