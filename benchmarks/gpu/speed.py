"""Measures decode, prefill and steering of an engine against the limits."""

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
    """Time of a step, or of the measured work."""
    tokens_per_second: float
    share_of_limit: float | None
    """The least time that the limits allow, divided by the measured time."""


def decode(
    engine: Engine, name: str, sequences: int, context: int, steps: int, limits: Limits, work: Work
) -> Figure:
    """Steps of `sequences` sequences, whose contexts begin at `context` tokens."""
    start(engine, sequences, context)
    seconds = _seconds_per_step(engine, steps)
    stop(engine)
    least = work.decode_seconds(limits, sequences, context + _WARM_UP + steps // 2)
    return Figure(name, f"decode, {sequences} x {context}", seconds, sequences / seconds, least / seconds)


def prefill(engine: Engine, name: str, prompts: int, length: int, limits: Limits, work: Work) -> Figure:
    """Prompts without a common prefix, up to the first token of the last prompt."""
    seconds = _seconds_to_read(engine, prompts, length)
    tokens = prompts * length
    least = work.prefill_seconds(limits, tokens)
    return Figure(name, f"prefill, {prompts} x {length}", seconds, tokens / seconds, least / seconds)


def first_token(engine: Engine, name: str, length: int) -> Figure:
    """Time to first token of a single prompt."""
    seconds = statistics.median(_seconds_to_read(engine, 1, length, seed) for seed in range(100, 105))
    return Figure(name, f"first token after {length}", seconds, 1 / seconds, None)


def steering(
    engine: Engine, name: str, sequences: int, context: int, steps: int, rounds: int
) -> list[Figure]:
    """Ways to steer, which alternate every `steps` steps.

    Their share is the unsteered time divided by the steered time.
    """
    configurations = (1, sequences)
    running = start(engine, sequences, context)
    ways = ways_to_steer(engine, len(running), configurations)
    times: dict[str, list[float]] = {way: [] for way in ways}
    rng = random.Random(0)
    for _ in range(rounds):
        for way in rng.sample(sorted(ways), len(ways)):
            for sequence, steered_by in zip(running, ways[way], strict=True):
                sequence.steering = steered_by
            times[way].append(_seconds_per_step(engine, steps))
    for sequence in running:
        sequence.steering = None
    stop(engine)
    layers = len(engine.runner.bank.blocks)
    figures = []
    for way, seconds in times.items():
        ratio = statistics.median(u / s for u, s in zip(times["none"], seconds, strict=True))
        median = statistics.median(seconds)
        what = f"decode, {sequences} x {context}, {layers} layer{'s' * (layers > 1)} steered by {way}"
        figures.append(Figure(name, what, median, sequences / median, ratio))
    return figures


def _seconds_per_step(engine: Engine, steps: int) -> float:
    """Mean time of a step. The warm-up steps also finish the steps that were launched ahead."""
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
