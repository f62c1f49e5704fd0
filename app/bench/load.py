"""The closed loop: each client sends its next request as soon as its last one is answered.

Several servers take turns at each point, so that they are compared under the same conditions.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product

import httpx

from app.bench.client import (
    BenchError,
    Exchange,
    Target,
    Workload,
    connect,
    count_prompt_tokens,
    exchange,
    first_model,
)
from app.bench.figures import Measurement, Point
from app.bench.prompts import MIN_WORDS, Prompts

_PROBES = (4, 36)
"""Lengths, in words, of the two prompts that show how a server counts tokens."""
_WARM_UP_TOKENS = 8

Turn = Callable[[Target], AbstractContextManager[object]]
"""Returns a context that is open while requests go to this target. It may pause the other servers."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    concurrencies: Sequence[int] = (1, 8, 32, 64)
    prompt_tokens: Sequence[int] = (16, 135, 1000)
    rounds: int = 2
    requests: int = 2
    """Average number of requests per client in each round. The next free client sends the next request."""
    workload: Workload = field(default_factory=Workload)
    seed: int = 0

    @property
    def points(self) -> list[Point]:
        return [Point(*point) for point in product(self.prompt_tokens, self.concurrencies)]


async def compare(
    targets: Sequence[Target], plan: Plan, turn: Turn = lambda _: nullcontext()
) -> AsyncIterator[tuple[int, Measurement]]:
    """Yields each measurement with the number of its round, from 0.

    Targets take turns within each point: forwards in one round, backwards in the next. Raises BenchError
    before the first measurement if a target cannot be used.
    """
    contenders = []
    for target in targets:
        with turn(target):
            contenders.append(await _prepare(target, plan))
    for number in range(plan.rounds):
        for point in plan.points:
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                with turn(contender.target):
                    await contender.send_one()
                    measurement = await contender.measure(point, plan.requests)
                yield number, measurement


async def _prepare(target: Target, plan: Plan) -> "Contender":
    """Finds out the target's model and how it counts tokens, and warms it up. Raises BenchError."""
    prompts = Prompts(plan.seed)
    try:
        async with connect(target) as client:
            model = target.model or await first_model(client)
            few, many = [await count_prompt_tokens(client, model, prompts.draw(words)) for words in _PROBES]
    except BenchError as error:
        raise BenchError(f"{target.name} {error}") from None
    each = (many - few) / (_PROBES[1] - _PROBES[0])
    if each <= 0:
        raise BenchError(f"{target.name} counts {few} tokens in a prompt and {many} in a longer one")
    template = few - each * _PROBES[0]
    contender = Contender(target, model, plan.workload, prompts, template, each)
    for concurrency in plan.concurrencies:
        await contender.warm_up(concurrency)
    return contender


@dataclass
class Contender:
    """A target that answers, and what is needed to make its requests."""

    target: Target
    model: str
    workload: Workload
    prompts: Prompts
    template_tokens: float
    tokens_per_word: float

    async def measure(self, point: Point, requests: int) -> Measurement:
        words = round((point.prompt_tokens - self.template_tokens) / self.tokens_per_word)
        bodies = self._bodies(self.workload, words, requests * point.concurrency)
        async with connect(self.target) as client:
            started, busy = time.perf_counter(), time.process_time()
            exchanges = await _loop(client, bodies, point.concurrency)
            seconds, client_seconds = time.perf_counter() - started, time.process_time() - busy
        records = tuple(done.read() for done in exchanges)
        return Measurement(self.target.name, point, records, seconds, client_seconds)

    async def warm_up(self, concurrency: int) -> None:
        """Sends short requests, because a server that compiles code answers the first ones slowly.

        Ignores errors: the measurement shows them.
        """
        few = Workload(min(_WARM_UP_TOKENS, self.workload.tokens), banned=self.workload.banned)
        async with connect(self.target) as client:
            await _loop(client, self._bodies(few, MIN_WORDS, concurrency), concurrency)

    async def send_one(self) -> None:
        """Sends one request, so that a paused server is warm again. Ignores errors."""
        await self.warm_up(1)

    def _bodies(self, workload: Workload, words: int, number: int) -> list[bytes]:
        return [workload.encode(self.model, self.prompts.draw(words)) for _ in range(number)]


async def _loop(client: httpx.AsyncClient, bodies: list[bytes], concurrency: int) -> list[Exchange]:
    waiting = iter(bodies)
    exchanges: list[Exchange] = []

    async def send_the_next() -> None:
        exchanges.extend([await exchange(client, body) for body in waiting])

    await asyncio.gather(*(send_the_next() for _ in range(concurrency)))
    return exchanges
