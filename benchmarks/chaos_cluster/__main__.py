"""Sends load to a cluster on this host, while workers, gateways, nodes and the registry are killed.

    make chaos-cluster                                  # five minutes, with the embedded model
    .venv/bin/python -m benchmarks.chaos_cluster --minutes 1

Clients send requests for greedy answers, which do not depend on other requests, and compare the answers. Each
request must get the right answer or fail with an error code; a request to a gateway that is killed may also
lose its connection. Exits with 1 if an answer was lost or wrong, if an error came later than 5 s after the
fault, or if not all served again within 60 s.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import uvloop

from app.bench.client import BenchError
from benchmarks.chaos.clients import Fate, LostError, Question, RefusedError, Tally, ask
from benchmarks.chaos_cluster.faults import Faults
from benchmarks.chaos_cluster.loopback import ClusterFaultError, loopback_cluster
from benchmarks.command import build_parser, run

_MODEL = "smollm2-135m-instruct"
_TOPICS = ("rain", "the sea", "bread", "a red fox", "numbers", "Paris")
_PAUSE_SECONDS = 0.5
_CLEAR_SECONDS = 5.0


def main() -> int:
    arguments = _parse()
    return run("chaos-cluster", lambda: _run(arguments), BenchError, ClusterFaultError)


def _parse() -> argparse.Namespace:
    parser = build_parser("chaos_cluster", __doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--concurrency", type=int, default=4, help="requests at the same time")
    parser.add_argument("--pause", type=float, default=5, help="seconds between recovery and the next fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-directory", type=Path, default=Path("~/.cache/tiller"))
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    settings = {
        "model": {"name": _MODEL, "source": "embedded", "scale": {"min": 2}},
        "engine": {"quantization": "integer", "threads": 1, "kv_cache_gib": 0.25, "device": "cpu"},
        "steering": {"train_at_start": False},
        "cluster": {"gateways": 2},
        "cache_directory": str(arguments.cache_directory.expanduser().absolute()),
    }
    _say("starting three nodes, two gateways and two workers")
    with loopback_cluster(settings) as cluster, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        urls = cluster.up()
        faults = Faults(cluster, random.Random(arguments.seed))
        return runner.run(_Chaos(urls, faults, arguments).run())


class _Chaos:
    def __init__(self, urls: Sequence[str], faults: Faults, arguments: argparse.Namespace) -> None:
        self._urls = urls
        self._faults = faults
        self._arguments = arguments
        self._tally = Tally()
        self._slowest = 0.0
        """Seconds from the last fault to an error."""

    async def run(self) -> int:
        """Returns the exit status."""
        _say("sending each request once, without other load")
        questions = [await _question(self._urls[0], topic) for topic in _TOPICS]
        _say(f"{self._arguments.minutes:g} minutes of load and faults")
        until = time.monotonic() + 60 * self._arguments.minutes
        rng = random.Random(self._arguments.seed)
        clients = [
            asyncio.create_task(self._client(questions, until, random.Random(rng.random())))
            for _ in range(self._arguments.concurrency)
        ]
        late = await self._break(until)
        await asyncio.gather(*clients)
        _say("sending each request again")
        recovered = not late and await self._recovers(questions)
        self._report(recovered)
        bad = self._tally.fates[Fate.LOST] + self._tally.fates[Fate.WRONG]
        finished = self._tally.fates[Fate.FINISHED]
        return 0 if recovered and finished and not bad and self._slowest <= _CLEAR_SECONDS else 1

    async def _break(self, until: float) -> bool:
        """Injects faults. Returns whether one was not repaired in time."""
        number = 0
        while time.monotonic() < until:
            await asyncio.sleep(self._arguments.pause)
            try:
                await asyncio.to_thread(self._faults.inject, number)
            except ClusterFaultError as error:
                _say(str(error))
                return True
            number += 1
        return False

    async def _client(self, questions: Sequence[Question], until: float, rng: random.Random) -> None:
        """Sends one request after the other, each to any gateway."""
        while time.monotonic() < until:
            url, question = rng.choice(self._urls), rng.choice(questions)
            begin = time.monotonic()
            try:
                async with httpx.AsyncClient(base_url=url) as client:
                    answer = await ask(client, question.body, rng.random() < 0.5)
            except RefusedError as error:
                self._fail(str(error), begin)
                await asyncio.sleep(_PAUSE_SECONDS)
            except LostError as error:
                self._lose(url, begin, str(error))
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                right = answer == question.answer
                self._tally.count(
                    Fate.FINISHED if right else Fate.WRONG, f"{answer!r}, not {question.answer!r}"
                )

    def _fail(self, detail: str, begin: float) -> None:
        now = time.monotonic()
        faults = [fault.at for fault in self._faults.injected if fault.at <= now]
        self._slowest = max(self._slowest, now - max(begin, *faults) if faults else 0.0)
        self._tally.count(Fate.FAILED, detail)

    def _lose(self, url: str, begin: float, detail: str) -> None:
        """A broken connection is an error of a killed gateway, and a lost answer of any other."""
        now = time.monotonic()
        if any(fault.covers(url, begin, now) for fault in self._faults.injected):
            self._fail("connection to a killed gateway", begin)
        else:
            self._tally.count(Fate.LOST, detail)

    async def _recovers(self, questions: Sequence[Question]) -> bool:
        """Whether each gateway gives all right answers again."""
        for url in self._urls:
            async with httpx.AsyncClient(base_url=url) as client:
                for question in questions:
                    if await ask(client, question.body) != question.answer:
                        return False
        return True

    def _report(self, recovered: bool) -> None:
        tally = self._tally
        print("| what | times |\n|---|---|")
        print(f"| requests sent | {sum(tally.fates.values())} |")
        for fate in (Fate.FINISHED, Fate.FAILED, Fate.LOST, Fate.WRONG):
            print(f"| {fate} | {tally.fates[fate]} |")
        for code, count in sorted(tally.codes.items()):
            print(f"| failed: {code} | {count} |")
        print("\n| fault | times | longest time until all served again |\n|---|---|---|")
        kinds = dict.fromkeys(fault.kind for fault in self._faults.injected)
        for kind in kinds:
            found = [fault for fault in self._faults.injected if fault.kind == kind]
            times = [fault.served - fault.at for fault in found if fault.served is not None]
            print(f"| {kind} | {len(found)} | {max(times, default=float('inf')):.1f} s |")
        print(f"\nThe slowest error came {self._slowest:.1f} s after its fault.")
        print(f"After the faults, all answers are right again: {'yes' if recovered else 'no'}.")
        for problem in tally.problems:
            print(f"- {problem}")


async def _question(url: str, topic: str) -> Question:
    """Sends a request once to learn its answer. Raises BenchError."""
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": f"Tell me something about {topic}."}],
        "max_tokens": 48,
        "temperature": 0,
    }
    try:
        async with httpx.AsyncClient(base_url=url) as client:
            return Question(body, await ask(client, body))
    except (RefusedError, LostError) as error:
        raise BenchError(f"a request failed before the first fault: {error}") from None


def _say(line: str) -> None:
    print(f"chaos-cluster: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
