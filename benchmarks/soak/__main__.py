"""Sends a mixed load to a server for many minutes: does it fail, grow or leak?

    .venv/bin/python -m benchmarks.soak                                  # starts the quick start's server
    .venv/bin/python -m benchmarks.soak --url http://127.0.0.1:8000      # a server on this machine

Short and long prompts, streamed and whole answers, steering, several choices, invalid requests, and clients
that disconnect. Writes soak.md, soak.json and soak.png. Exits with 1 if a request did not end as expected, if
memory grew by more than --tolerance over the second half and over both of its quarters, or if the server
still holds resources at rest.
"""

import argparse
import asyncio
import sys
from contextlib import suppress
from datetime import UTC, datetime

import httpx
import uvloop

from app.bench.client import BenchError, Target, connect, first_model
from benchmarks.command import add_server_options, build_parser, run
from benchmarks.peers.machine import commit, describe_machine
from benchmarks.peers.processes import ServerError
from benchmarks.resources import find_server
from benchmarks.serving import serving_for
from benchmarks.soak import load
from benchmarks.soak.findings import Soak, faults
from benchmarks.soak.mix import Mix
from benchmarks.soak.plot import draw
from benchmarks.soak.results import write
from benchmarks.soak.samples import Sampler

_SETTLE_SECONDS = 10.0
_IDLE_POLLS = 120
_POLL_SECONDS = 1.0
_RUNNING = "tiller_running"


def main() -> int:
    arguments = _parse()
    return run("soak", lambda: _run(arguments), BenchError, ServerError, LookupError)


def _run(arguments: argparse.Namespace) -> int:
    started = datetime.now(UTC)
    with (
        serving_for("soak", arguments) as target,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        soak = runner.run(_soak(target, arguments))
    conditions = {
        "started": started.isoformat(),
        "machine": describe_machine(),
        "commit": commit(),
        "minutes": arguments.minutes,
        "concurrency": arguments.concurrency,
        "seed": arguments.seed,
        "tolerance": arguments.tolerance,
    }
    found = faults(soak, arguments.tolerance)
    print(write(soak, found, conditions, arguments.output))
    draw(soak, arguments.output / "soak.png")
    return 1 if found else 0


def _parse() -> argparse.Namespace:
    parser = build_parser("soak", __doc__)
    add_server_options(parser)
    parser.add_argument(
        "--concepts", type=int, default=2, help="how many to steer by; training one takes a minute or two"
    )
    parser.add_argument("--sample-seconds", type=float, default=2)
    parser.add_argument(
        "--tolerance", type=float, default=1, help="limit for each process's growth, in MiB per minute"
    )
    return parser.parse_args()


async def _soak(target: Target, arguments: argparse.Namespace) -> Soak:
    """Raises BenchError and LookupError."""
    sampler = Sampler(target, find_server(httpx.URL(target.url).port or 80))
    async with connect(target) as client:
        model = await first_model(client)
    concepts = (await load.list_concepts(target))[: arguments.concepts]
    mix = Mix(model, concepts, arguments.seed)
    _say(f"one request of each kind; concepts: {', '.join(concepts) or 'none'}")
    outcomes = await load.run_once(target, [*mix.each_once(), *mix.steered_by_each()])
    await _wait_until_idle(sampler)
    before = await sampler.sample()
    _say(f"{arguments.minutes:g} minutes of load")
    sampler.begin()
    sampling = asyncio.create_task(sampler.run(arguments.sample_seconds))
    outcomes += await load.run(target, mix, arguments.concurrency, arguments.minutes * 60)
    sampling.cancel()
    with suppress(asyncio.CancelledError):
        await sampling
    _say("waiting until the server is idle")
    became_idle = await _wait_until_idle(sampler)
    after = await sampler.sample()
    # An idle worker checks that no block is in use, and ends if one is. So test that it still answers.
    outcomes += await load.run_once(target, [next(mix.each_once())])
    return Soak(outcomes, before, sampler.samples, after, became_idle)


async def _wait_until_idle(sampler: Sampler) -> bool:
    """Whether the server became idle in time. Then waits a little, until it has released its resources."""
    for _ in range(_IDLE_POLLS):
        if not (await sampler.sample()).gauges.get(_RUNNING, 0.0):
            await asyncio.sleep(_SETTLE_SECONDS)
            return True
        await asyncio.sleep(_POLL_SECONDS)
    return False


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
