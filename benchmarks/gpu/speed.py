"""Measures prompts, decode steps, steering and sampling options of an engine against the limits."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.budget import Deadline
from benchmarks.gpu.figures import Figure, Limits, MeasurementError, Note
from benchmarks.gpu.limits import Work, synchronize
from benchmarks.steering_cost import prompt, ways_to_steer
from inference.engine import Engine
from inference.interface.requests import GenerationRequest, SamplingParams
from inference.runner.model_runner import ModelRunner, Step
from inference.scheduling.sequence import Sequence

_WARM_UP = 3  # steps
_FRESH_SEED = 1_000_000  # no prompt of a running sequence has a seed this high
_OPTIONS: dict[str, dict[str, Any]] = {
    "top_p 0.9": {"top_p": 0.9},
    "top_logprobs 5": {"top_logprobs": 5},
    "frequency_penalty 0.5": {"frequency_penalty": 0.5},
}


@dataclass(frozen=True)
class Steps:
    """Steps that were measured one after another."""

    seconds: float
    """Mean time of a step."""
    steering_rows: frozenset[int]
    """Numbers of different rows of the steering bank, without row 0, that the batches carried."""


class Speed:
    """The measurements of one engine. They raise OutOfTimeError, and MeasurementError if one is not valid."""

    def __init__(self, engine: Engine, name: str, limits: Limits, work: Work, deadline: Deadline) -> None:
        self._engine = engine
        self._name = name
        self._limits = limits
        self._work = work
        self._deadline = deadline
        self._fresh = itertools.count(_FRESH_SEED)

    def first_token(self, length: int, repeats: int = 5) -> Iterator[Figure]:
        """Time to first token of a single prompt: of the first prompt, then in the steady state."""
        what, meaning = (
            f"first token after {length}",
            "from the request to the first token, nothing else runs",
        )
        seconds, hits = self._read(1, length)
        yield Figure(self._name, f"{what}, first use", meaning, seconds, counts=_hits(hits))
        measured = [self._read(1, length) for _ in range(repeats)]
        seconds = statistics.median(seconds for seconds, _ in measured)
        hits = sum(hits for _, hits in measured)
        yield Figure(self._name, what, f"{meaning}; median of {repeats}", seconds, counts=_hits(hits))

    def prefill(self, prompts: int, length: int, repeats: int = 3) -> Iterator[Figure]:
        """Prompts without a common prefix, up to the first token of the last prompt."""
        least = self._work.prefill_seconds(self._limits, prompts * length)
        for what, count in (("prefill, first use", 1), ("prefill", repeats)):
            measured = [self._read(prompts, length) for _ in range(count)]
            seconds = statistics.median(seconds for seconds, _ in measured)
            yield Figure(
                self._name,
                f"{what}, {prompts} x {length}",
                "until all prompts have their first token; the limit counts only products with weights",
                seconds,
                prompts * length / seconds,
                least / seconds,
                counts=_hits(sum(hits for _, hits in measured)),
            )

    def decode(self, sequences: int, context: int, steps: int) -> Iterator[Figure | Note]:
        """Steps of `sequences` sequences, whose contexts begin at `context` tokens."""
        if not self.fits(sequences, context):
            yield Note(
                f"{self._name}: {sequences} sequences of {context} tokens do not fit into the KV cache"
            )
            return
        with self._running(sequences, context):
            measured = self._steps(steps)
        least = self._work.decode_seconds(self._limits, sequences, context + _WARM_UP + steps // 2)
        yield Figure(
            self._name,
            f"decode, {sequences} x {context}",
            "one step; the limit counts the bytes of weights, keys and values",
            measured.seconds,
            sequences / measured.seconds,
            least / measured.seconds,
        )

    def sampling(self, sequences: int, context: int, steps: int) -> Iterator[Figure]:
        """The same decode steps with sampling options. All sequences use the option."""
        with self._running(sequences, context):
            plain = self._steps(steps).seconds
        for option, params in _OPTIONS.items():
            with self._running(sequences, context, **params):
                seconds = self._steps(steps).seconds
            yield Figure(
                self._name,
                f"decode, {sequences} x {context}, {option}",
                "one step; the ratio is to the same step without the option",
                seconds,
                sequences / seconds,
                ratio=seconds / plain,
            )

    def steering(
        self, sequences: int, context: int, steps: int, rounds: int, where: str, sets: list[tuple[int, ...]]
    ) -> Iterator[Figure]:
        """Ways to steer, which alternate every `steps` steps. Compares only steps of the same round.

        Configurations take turns in which of the `sets` of blocks they steer. `where`: says which these are.
        """
        with self._running(sequences, context) as running:
            none, *others = ways_to_steer(self._engine, sequences, (1, sequences), sets).items()
            ways = {"no steering": none[1], **dict(others)}
            expected = dict(zip(ways, (0, 1, sequences), strict=True))
            times: dict[str, list[float]] = {way: [] for way in ways}
            rows: dict[str, int] = {}
            rng = random.Random(0)
            for _ in range(rounds):
                for way in rng.sample(sorted(ways), len(ways)):
                    for sequence, steered_by in zip(running, ways[way], strict=True):
                        sequence.steering = steered_by
                    self._rebuild_batch()
                    measured = self._steps(steps)
                    rows[way] = _check_rows(way, measured.steering_rows, expected[way])
                    times[way].append(measured.seconds)
            for sequence in running:
                sequence.steering = None
        for way, seconds in times.items():
            ratios = [s / u for u, s in zip(times["no steering"], seconds, strict=True)]
            low, ratio, high = _quartiles(ratios)
            steered = rows[way] > 0
            median = statistics.median(seconds)
            yield Figure(
                self._name,
                f"decode, {sequences} x {context}, {where}, {way}",
                f"one step, median of {rounds} rounds; the ratio is to the unsteered step of the same round",
                median,
                sequences / median,
                ratio=ratio if steered else None,
                ratio_range=(low, high) if steered else None,
                counts={"steering_rows": float(rows[way])},
            )

    def fits(self, sequences: int, context: int) -> bool:
        """Whether the KV cache has room for the sequences, with some hundred tokens more for each."""
        stats, size = self._engine.stats, self._engine.block_manager.block_size
        return stats.blocks >= sequences * -(-(context + 256) // size)

    def _rebuild_batch(self) -> None:
        """Ends the step that was launched ahead. It and its followers would keep the steering of before."""
        runner = self._engine.runner
        runner.can_be_followed = lambda step: False  # noqa: ARG005
        self._step()
        del runner.can_be_followed  # the class's method again

    def _steps(self, steps: int) -> Steps:
        """Measures `steps` steps after some that are not measured."""
        device = self._engine.runner.model.device
        for _ in range(_WARM_UP):
            self._step()
        before = self._engine.stats
        with _recording(self._engine.runner) as batches:
            synchronize(device)
            started = time.perf_counter()
            for _ in range(steps):
                self._step()
            synchronize(device)
            seconds = (time.perf_counter() - started) / steps
        after = self._engine.stats
        if (after.preemptions, after.running) != (before.preemptions, before.running):
            raise MeasurementError("sequences were preempted or have ended")
        return Steps(seconds, frozenset(map(_num_rows, batches)))

    def _step(self) -> None:
        self._deadline.check()
        if failures := self._engine.step().failures:
            raise MeasurementError(f"a request failed: {failures[0].detail}")

    @contextmanager
    def _running(self, count: int, context: int, **params: Any) -> Iterator[list[Sequence]]:
        """Sequences that keep generating within the context.

        Their prompts are the same each time, so that they need little time once they are in the prefix cache.
        """
        max_tokens = self._engine.context_length - context
        for i in range(count):
            self._add(f"r{i}", prompt(self._engine, context, i), max_tokens, **params)
        while any(not sequence.is_decoding for sequence in self._engine.scheduler.sequences()):
            self._step()
        yield list(self._engine.scheduler.running)
        for i in range(count):
            self._engine.abort(f"r{i}")
        self._engine.check_integrity()

    def _read(self, prompts: int, length: int) -> tuple[float, int]:
        """Seconds until new prompts have their first token, and their tokens found in the prefix cache.

        Raises MeasurementError if there are any.
        """
        tokens = [prompt(self._engine, length, next(self._fresh)) for _ in range(prompts)]
        hits = self._engine.stats.prefix_cache_hits
        synchronize(self._engine.runner.model.device)
        started = time.perf_counter()
        for i, token_ids in enumerate(tokens):
            self._add(f"p{i}", token_ids, 1)
        while not self._engine.is_idle:
            self._step()
        seconds = time.perf_counter() - started
        hits = self._engine.stats.prefix_cache_hits - hits
        if hits:
            raise MeasurementError(f"{hits} tokens of {prompts} x {length} were in the prefix cache")
        return seconds, hits

    def _add(self, request_id: str, token_ids: list[int], max_tokens: int, **params: Any) -> None:
        sampling = SamplingParams(**{"temperature": 0.7, **params})
        refusal = self._engine.add(
            GenerationRequest(request_id, token_ids, max_tokens, sampling=sampling)
        ).refusal
        if refusal is not None:
            raise MeasurementError(f"the engine refuses a request: {refusal}")


@contextmanager
def _recording(runner: ModelRunner) -> Iterator[list[torch.Tensor | None]]:
    """Collects the steering rows of each batch that is launched within the context. None: unsteered."""
    batches: list[torch.Tensor | None] = []

    def recorded(launch: Callable[..., Step]) -> Callable[..., Step]:
        def launching(argument: Any) -> Step:
            step = launch(argument)
            steering = [part.batch.steering for part in step.parts]
            batches.extend(None if each is None else each.rows for each in steering)
            return step

        return launching

    runner.launch, runner.launch_after = recorded(runner.launch), recorded(runner.launch_after)
    try:
        yield batches
    finally:
        del runner.launch, runner.launch_after  # the class's methods again


def _num_rows(rows: torch.Tensor | None) -> int:
    return 0 if rows is None else len(set(rows.tolist()) - {0})


def _check_rows(way: str, found: frozenset[int], expected: int) -> int:
    """Returns the number of rows that each batch carried. Raises MeasurementError if it is not `expected`."""
    if found != {expected}:
        raise MeasurementError(
            f"steered by {way}: batches with {sorted(found)} different rows of the bank, not {expected}"
        )
    [number] = found
    return number


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _hits(hits: int) -> dict[str, float]:
    return {"prefix_cache_hits": float(hits)}
