"""How fast an engine decodes, reads prompts and steers, beside the limits."""

import random
import statistics
import time
from dataclasses import dataclass

from benchmarks.gpu.limits import Limits, Work, synchronize
from benchmarks.steering_cost import prompt, start, stop, ways_to_steer
from inference.engine import Engine
from inference.interface.protocol import GenerationRequest, SamplingParams

_WARM_UP = 5  # steps


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    model: str
    what: str
    seconds: float
    """Of a step, or of what is measured."""
    tokens_per_second: float
    share_of_limit: float | None
    """The least time that the limits allow over the time that it took."""


def decode(
    engine: Engine, name: str, sequences: int, context: int, steps: int, limits: Limits, work: Work
) -> Figure:
    """Steps of so many sequences whose contexts begin at `context` tokens."""
    start(engine, sequences, context)
    seconds = _seconds_per_step(engine, steps)
    stop(engine)
    least = work.decode_seconds(limits, sequences, context + _WARM_UP + steps // 2)
    return Figure(name, f"decode, {sequences} x {context}", seconds, sequences / seconds, least / seconds)


def prefill(engine: Engine, name: str, prompts: int, length: int, limits: Limits, work: Work) -> Figure:
    """Prompts that share nothing, up to the first token of the last."""
    seconds = _seconds_to_read(engine, prompts, length)
    tokens = prompts * length
    least = work.prefill_seconds(limits, tokens)
    return Figure(name, f"prefill, {prompts} x {length}", seconds, tokens / seconds, least / seconds)


def first_token(engine: Engine, name: str, length: int) -> Figure:
    """Of a prompt that comes alone."""
    seconds = statistics.median(_seconds_to_read(engine, 1, length, seed) for seed in range(100, 105))
    return Figure(name, f"first token after {length}", seconds, 1 / seconds, None)


def steering(
    engine: Engine, name: str, sequences: int, context: int, steps: int, rounds: int
) -> list[Figure]:
    """Ways to steer that take turns in blocks of steps; what the share says is unsteered time over theirs."""
    configurations = (1, sequences)
    running = start(engine, sequences, context)
    ways = ways_to_steer(engine, len(running), configurations)
    times: dict[str, list[float]] = {way: [] for way in ways}
    rng = random.Random(0)
    for _ in range(rounds):
        for way in rng.sample(sorted(ways), len(ways)):
            for sequence, given in zip(running, ways[way], strict=True):
                sequence.steering = given
            times[way].append(_seconds_per_step(engine, steps))
    for sequence in running:
        sequence.steering = None
    stop(engine)
    blocks = len(engine.runner.bank.blocks)
    figures = []
    for way, seconds in times.items():
        ratio = statistics.median(n / s for n, s in zip(times["none"], seconds, strict=True))
        median = statistics.median(seconds)
        what = f"decode, {sequences} x {context}, {blocks} block{'s' * (blocks > 1)} steered by {way}"
        figures.append(Figure(name, what, median, sequences / median, ratio))
    return figures


def _seconds_per_step(engine: Engine, steps: int) -> float:
    """The steps before also take what was launched ahead out of the measurement."""
    device = engine.runner.model.device
    for _ in range(_WARM_UP):
        engine.step()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        engine.step()
    synchronize(device)
    return (time.perf_counter() - started) / steps


def _seconds_to_read(engine: Engine, prompts: int, length: int, seed: int = 10_000) -> float:
    synchronize(engine.runner.model.device)
    started = time.perf_counter()
    for i in range(prompts):
        sampling = SamplingParams(temperature=0.7)
        request = GenerationRequest(f"p{i}", prompt(engine, length, seed + i), 1, sampling=sampling)
        assert engine.add(request).refusal is None
    while not engine.is_idle:
        engine.step()
    return time.perf_counter() - started
