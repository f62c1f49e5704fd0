"""Measures the cost of the gateway alone, per token and per request. Its engine answers at once.

    .venv/bin/python -m benchmarks.gateway
    .venv/bin/python -m benchmarks.gateway --engines worker --points 64@0 --seconds 10
    .venv/bin/python -m benchmarks.gateway --rush 10

The gateway is the real one, in its own process, with the embedded model's tokenizer. A point N@X is N open
streams; the engine steps every X ms, and each step gives each stream one token. If X is 0, the engine steps
as soon as the clients have received the last tokens, which shows how many tokens the gateway can pass on.
Compare CPU times: other work on the machine disturbs them least. Writes gateway.md and gateway.json.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from app.bench.client import BenchError
from app.bench.prompts import Prompts
from app.commands.bench import parse_numbers
from app.schemas.messages import Message
from app.text.prompts import load_text
from benchmarks.command import RESULTS, build_parser, run
from benchmarks.gateway.client import LoadError
from benchmarks.gateway.figures import (
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
from benchmarks.gateway.measure import Subject, measure_requests, measure_streams
from benchmarks.gateway.rush import measure_rush
from benchmarks.gateway.server import DEFAULT_ENGINES, ENGINES
from benchmarks.peers.machine import commit, describe_machine
from benchmarks.peers.processes import ServerError, ServerProcess
from benchmarks.peers.servers import Server, Setup, tiller
from benchmarks.resources import find_server
from inference.interface.directories import SourceError
from inference.models.sources import resolve

_RUSH_HELP = "measure only this: TIMES as many requests at once as the engine accepts"
_ROOT = Path(__file__).parents[2]
_MODEL = "smollm2-135m-instruct"


def main() -> int:
    arguments = _parse()
    return run(
        "gateway",
        lambda: _run(arguments, parse_points(arguments.points)),
        BenchError,
        LoadError,
        SourceError,
        ServerError,
    )


def _parse() -> argparse.Namespace:
    parser = build_parser("gateway", __doc__)
    engines = "\n".join(f"{name}: {words}" for name, words in ENGINES.items())
    parser.add_argument("--engines", default=",".join(DEFAULT_ENGINES), help=engines)
    parser.add_argument("--points", default="1@10,1@0,64@50,64@0,1000@500,1000@0", help="streams@ms, …")
    parser.add_argument("--seconds", type=float, default=4, help="duration of each measurement")
    parser.add_argument("--probe-seconds", type=float, default=5, help="how long to measure /health")
    parser.add_argument("--tokens", default="1,8,32", help="lengths of answers that show a request's cost")
    parser.add_argument("--connections", type=int, default=8, help="how many send such requests at once")
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cache-directory", type=Path, default="~/.cache/tiller")
    parser.add_argument("--rush", type=int, metavar="TIMES", help=_RUSH_HELP)
    parser.add_argument("--room", type=int, default=64, help="with --rush: how many choices may run or wait")
    return parser.parse_args()


def parse_points(text: str) -> list[Point]:
    """Parses points such as `64@50,1000@0`. Raises BenchError."""
    try:
        parts = [part.split("@") for part in text.split(",")]
        points = [Point(int(streams), float(step) / 1e3) for streams, step in parts]
    except ValueError:
        raise BenchError(f"{text!r} must be STREAMS@MILLISECONDS, separated by commas") from None
    if any(point.streams < 1 or not point.step_seconds >= 0 for point in points):
        raise BenchError(f"{text!r} must have at least 1 stream and no negative time at each point")
    return points


def _run(arguments: argparse.Namespace, points: list[Point]) -> int:
    engines = arguments.engines.split(",")
    if unknown := set(engines) - ENGINES.keys():
        raise BenchError(f"unknown engines: {', '.join(sorted(unknown))}")
    lengths = parse_numbers(arguments.tokens, least=1)
    directory = resolve("embedded", arguments.cache_directory.expanduser())
    prompt = Prompts(seed=0).draw(arguments.prompt_words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.rush:
        print(rush_table([_rush(directory, prompt, arguments)]))
        return 0
    streams: list[StreamFigures] = []
    requests: list[RequestFigures] = []
    started = datetime.now(UTC)
    for engine in engines:
        with (
            _running(engine, directory, prompt, arguments) as subject,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(_measure(subject, arguments, points, lengths, streams, requests))
    conditions = {
        "started": started.isoformat(),
        "machine": describe_machine(),
        "commit": commit(),
        "prompt_tokens": _count(directory, prompt),
        "connections": arguments.connections,
    }
    print(_write(streams, requests, conditions, arguments.output))
    return 0


def _rush(directory: Path, prompt: str, arguments: argparse.Namespace) -> RushFigures:
    room = {"TILLER_ENGINE__MAX_RUNNING": str(arguments.room), "TILLER_ENGINE__MAX_QUEUED": "0"}
    with (
        _running("worker", directory, prompt, arguments, room) as subject,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        _say("warming up")
        runner.run(measure_requests(subject, 1, True, min(arguments.connections, arguments.room), seconds=1))
        _say(f"sending {arguments.rush} times as many requests as the engine accepts ({arguments.room})")
        return runner.run(measure_rush(subject, arguments.room, arguments.rush, arguments.probe_seconds))


@contextmanager
def _running(
    engine: str, directory: Path, prompt: str, arguments: argparse.Namespace, settings: Mapping[str, str] = {}
) -> Iterator[Subject]:
    """Starts a gateway that ends with the context. Raises ServerError."""
    with tempfile.TemporaryDirectory(prefix="tiller-bench-") as scratch:
        pipe = Path(scratch) / "steps"
        os.mkfifo(pipe)
        server = _server(engine, directory, pipe, arguments)
        _say(f"starting the gateway, engine: {engine}")
        environment = {**server.environment, **settings}
        process = ServerProcess(server.command, environment, arguments.output / f"gateway-{engine}.log")
        try:
            process.wait_until_ready(server.url)
            yield Subject(engine, find_server(server.port), server.port, pipe, _MODEL, prompt)
        finally:
            process.terminate()


def _server(engine: str, directory: Path, pipe: Path, arguments: argparse.Namespace) -> Server:
    """The quick start's server, with a stand-in engine."""
    cache = arguments.cache_directory.expanduser()
    server = tiller(Setup(peers=pipe.parent, cache=cache, scratch=pipe.parent, slots=1, context=1))
    program = [sys.executable, "-m", "benchmarks.gateway.server", engine, str(directory), str(pipe)]
    return replace(server, command=program + server.command[server.command.index("serve") :])


async def _measure(
    subject: Subject,
    arguments: argparse.Namespace,
    points: list[Point],
    lengths: tuple[int, ...],
    streams: list[StreamFigures],
    requests: list[RequestFigures],
) -> None:
    _say(f"{subject.engine}: warming up")
    await measure_requests(subject, 1, True, arguments.connections, seconds=1)
    for point in points:
        _say(f"{subject.engine}: {point}")
        streams.append(await measure_streams(subject, point, arguments.seconds, arguments.probe_seconds))
    for streamed in (False, True):
        for tokens in lengths:
            _say(f"{subject.engine}: answers of {tokens} tokens, {'streamed' if streamed else 'whole'}")
            requests.append(
                await measure_requests(subject, tokens, streamed, arguments.connections, arguments.seconds)
            )


def _count(directory: Path, prompt: str) -> int:
    """Number of tokens of the whole prompt, including the chat template."""
    _, renderer = load_text(directory)
    if renderer is None:
        raise BenchError("the embedded model has no chat template")
    return len(renderer.encode([Message(role="user", content=prompt)]))


def _write(
    streams: list[StreamFigures],
    requests: list[RequestFigures],
    conditions: dict[str, Any],
    directory: Path,
) -> str:
    """Writes gateway.md and gateway.json; returns the page."""
    machine = conditions["machine"]
    page = "\n\n".join(
        [
            f"{conditions['started']:.16} UTC; {machine['processor']}, {machine['cores']} cores, "
            f"{machine['system']}, Python {machine['python']}, commit {conditions['commit']}. "
            f"Prompts of {conditions['prompt_tokens']} tokens; "
            f"requests on {conditions['connections']} connections.",
            stream_table(streams),
            request_table(requests),
            line_table(fit(requests)),
        ]
    )
    (directory / "gateway.md").write_text(page + "\n", encoding="utf-8")
    (directory / "gateway.json").write_text(to_json(streams, requests, conditions), encoding="utf-8")
    return page


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
