"""Sends load while the worker is killed and stopped, crowds connect and disconnect, and garbage arrives.

    make chaos                                          # ten minutes, with the quick start's server
    .venv/bin/python -m benchmarks.chaos --minutes 1

Clients send requests for greedy answers, which do not depend on other requests, and compare the answers. Each
request must get the right answer or fail with an error code. Exits with 1 if an answer was lost or wrong, if
no request was answered, or if an answer is wrong or missing after the faults.
"""

import argparse
import asyncio
import random
import sys
import time
from contextlib import suppress

import httpx
import uvloop

from app.bench.client import BenchError, Target, connect, first_model
from benchmarks.chaos.clients import Fate, LostError, Question, RefusedError, Tally, ask, ask_on
from benchmarks.chaos.faults import Faults
from benchmarks.command import add_server_options, build_parser, run
from benchmarks.peers.processes import ServerError
from benchmarks.resources import find_server
from benchmarks.serving import serving_for
from benchmarks.soak.load import list_concepts

_TOPICS = (
    "rain",
    "the sea",
    "bread",
    "a red fox",
    "numbers",
    "Paris",
    "trains",
    "sleep",
    "glass",
    "old maps",
)
_RECOVERY_SECONDS = 180.0


def main() -> int:
    arguments = _parse()
    return run("chaos", lambda: _run(arguments), BenchError, ServerError, LookupError)


def _run(arguments: argparse.Namespace) -> int:
    with (
        serving_for("chaos", arguments) as target,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_chaos(target, arguments))


def _parse() -> argparse.Namespace:
    parser = build_parser("chaos", __doc__)
    add_server_options(parser)
    parser.add_argument("--pause", type=float, default=20, help="seconds between faults, on average")
    return parser.parse_args()


async def _chaos(target: Target, arguments: argparse.Namespace) -> int:
    rng = random.Random(arguments.seed)
    concepts = (await list_concepts(target))[:1]
    async with connect(target) as client:
        gateway = find_server(httpx.URL(target.url).port or 80)
        _say("sending each request once, without other load")
        questions = await _questions(client, await first_model(client), concepts)
        faults, tally = Faults(client, gateway, questions[0], rng), Tally()
        _say(f"{arguments.minutes:g} minutes of load and faults")
        until = time.monotonic() + 60 * arguments.minutes
        breaking = asyncio.create_task(faults.go_on(arguments.pause / 2, arguments.pause * 3 / 2))
        clients = (
            ask_on(client, questions, until, random.Random(rng.random()), tally)
            for _ in range(arguments.concurrency)
        )
        await asyncio.gather(*clients)
        breaking.cancel()
        with suppress(asyncio.CancelledError):
            await breaking
        _say("sending each request again")
        recovered = await _recovers(client, questions)
    _report(faults, tally, recovered)
    bad = tally.fates[Fate.LOST] + tally.fates[Fate.WRONG]
    return 1 if bad or not tally.fates[Fate.FINISHED] or not recovered else 0


async def _questions(client: httpx.AsyncClient, model: str, concepts: list[str]) -> list[Question]:
    """Sends each request once to learn its answer. Half of them are steered. Raises BenchError."""
    questions = []
    for i, topic in enumerate(_TOPICS):
        body = {
            "model": model,
            "messages": [
                {"role": "user", "content": f"Tell me something about {topic}. " * (1 + 9 * (i % 3))}
            ],
            "max_tokens": 4 + 7 * i,
            "temperature": 0,
            "steering_concepts": concepts if i % 2 else [],
        }
        try:
            questions.append(Question(body, await ask(client, body)))
        except (RefusedError, LostError) as error:
            raise BenchError(f"a request failed before the first fault: {error}") from None
    return questions


async def _recovers(client: httpx.AsyncClient, questions: list[Question]) -> bool:
    """Whether all requests get the right answers again. Waits until the worker is back."""
    deadline = time.monotonic() + _RECOVERY_SECONDS
    for question in questions:
        while True:
            try:
                if await ask(client, question.body) != question.answer:
                    return False
                break
            except (RefusedError, LostError):
                if time.monotonic() > deadline:
                    return False
                await asyncio.sleep(1)
    return True


def _report(faults: Faults, tally: Tally, recovered: bool) -> None:
    print("| what | times |\n|---|---|")
    print(f"| requests sent | {sum(tally.fates.values())} |")
    for fate in Fate:
        print(f"| {fate} | {tally.fates[fate]} |")
    for code, count in sorted(tally.codes.items()):
        print(f"| failed: {code} | {count} |")
    for kind, count in sorted(faults.injected.items()):
        print(f"| fault: {kind} | {count} |")
    print(f"\nAfter the faults, all answers are right again: {'yes' if recovered else 'no'}.")
    for problem in tally.problems:
        print(f"- {problem}")


def _say(line: str) -> None:
    print(f"chaos: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
