"""The three measurements on one engine. Each round measures all sizes in random order."""

import argparse
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.growth.curves import Curve, per_token
from benchmarks.steering_cost import measure_ways, prompt, run_step_by_step, start, stop, timed_step
from inference.engine import Engine
from inference.interface.requests import GenerationRequest, SamplingParams
from inference.scheduling.sequence import Sequence

_FIRST_SEED = 1000  # of prompts that no other measurement uses


@dataclass(frozen=True)
class Plan:
    sequences: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    sequence_rounds: int = 10
    sequence_steps: int = 4
    """Steps of each number of sequences in a round."""
    prompt_tokens: int = 64
    """Prompt length of each sequence in the measurements by sequences and by configurations."""
    contexts: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    context_rounds: int = 3
    context_steps: int = 31
    """Steps at each context in a round. The last one ends at this context."""
    configurations: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Numbers of steering configurations, with the largest number of sequences."""
    configuration_rounds: int = 32


QUICK = Plan(
    sequences=(1, 8, 32),
    sequence_rounds=3,
    prompt_tokens=16,
    contexts=(128, 512, 2048),
    context_rounds=1,
    context_steps=7,
    configurations=(1, 32),
    configuration_rounds=24,
)


def by_sequences(engine: Engine, plan: Plan) -> Curve:
    """Steps of each number of sequences. Draws sequences at random, so that contexts stay equally long."""
    run_step_by_step(engine)
    sequences = start(engine, max(plan.sequences), plan.prompt_tokens)
    seconds: dict[int, list[float]] = {count: [] for count in plan.sequences}
    rng = random.Random(0)
    for _ in range(plan.sequence_rounds):
        for count in rng.sample(plan.sequences, len(plan.sequences)):
            with only(engine, rng.sample(sequences, count)):
                seconds[count] += [timed_step(engine) for _ in range(plan.sequence_steps)]
    stop(engine)
    points = per_token(seconds, {count: count for count in plan.sequences})
    return Curve("decode, by sequences", "running sequences", 0, points)


def by_context(engine: Engine, plan: Plan) -> tuple[Curve, Curve]:
    """Decode and prefill: computes each prompt alone, then decodes its sequence up to the context."""
    run_step_by_step(engine)
    lengths = {context: context - plan.context_steps - 1 for context in plan.contexts}
    reading: dict[int, list[float]] = {context: [] for context in plan.contexts}
    decoding: dict[int, list[float]] = {context: [] for context in plan.contexts}
    rng = random.Random(0)
    for number in range(plan.context_rounds):
        sequences: dict[int, Sequence] = {}
        for context in rng.sample(plan.contexts, len(plan.contexts)):
            seed = _FIRST_SEED + number * len(lengths) + len(sequences)
            sequences[context], time = read(engine, prompt(engine, lengths[context], seed), context)
            reading[context].append(time)
        for _ in range(plan.context_steps):
            for context in rng.sample(plan.contexts, len(plan.contexts)):
                with only(engine, [sequences[context]]):
                    decoding[context].append(timed_step(engine))
        stop(engine)
    decoded = per_token(decoding, dict.fromkeys(plan.contexts, 1))
    return (
        Curve("decode, by context", "context, tokens", 1, decoded),
        Curve("prefill, by context", "context, tokens", 1, per_token(reading, lengths)),
    )


def by_configurations(engine: Engine, plan: Plan) -> Curve:
    """Steps of the largest number of sequences, unsteered (0) and with each number of configurations."""
    count = max(plan.sequences)
    arguments = argparse.Namespace(
        sequences=count, prompt_tokens=plan.prompt_tokens, rounds=plan.configuration_rounds
    )
    ways = measure_ways(engine, arguments, plan.configurations)
    seconds = dict(zip((0, *plan.configurations), ways.values(), strict=True))
    points = per_token(seconds, dict.fromkeys(seconds, count))
    return Curve("decode, by steering", "steering configurations", None, points)


def read(engine: Engine, token_ids: list[int], context: int) -> tuple[Sequence, float]:
    """Computes a prompt up to its first new token. Returns its sequence and the seconds that it took.

    The sequence ends when it has `context` tokens.
    """
    max_tokens = context - len(token_ids)
    sampling = SamplingParams(temperature=0.7)
    assert (
        engine.add(GenerationRequest(f"c{context}", token_ids, max_tokens, sampling=sampling)).refusal is None
    )
    seconds = 0.0
    with only(engine, []):
        while True:
            seconds += timed_step(engine)
            [sequence] = engine.scheduler.running
            if sequence.is_decoding:
                return sequence, seconds


@contextmanager
def only(engine: Engine, sequences: Collection[Sequence]) -> Iterator[None]:
    """In the `with` block, only these sequences and new ones run. The others pause and keep their blocks."""
    others = set(engine.scheduler.running).difference(sequences)
    engine.scheduler.running = list(sequences)
    try:
        yield
    finally:
        engine.scheduler.running += others
