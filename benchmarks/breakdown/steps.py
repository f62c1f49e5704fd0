"""Times whole steps of the engine, and what the engine does around its kernels."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.breakdown.parts import Workload
from benchmarks.breakdown.results import Part
from benchmarks.steering_cost import prompt, start, stop
from inference.engine import Engine
from inference.interface.requests import GenerationRequest, SamplingParams

_MODEL, _SAMPLING = "model", "sampling"


class Clock:
    """Adds up the CPU time of functions while they run in steps."""

    def __init__(self) -> None:
        self.seconds = {_MODEL: 0.0, _SAMPLING: 0.0}

    def follow(self, owner: Any, function: str, part: str) -> None:
        """Replaces a method of an object by one that also counts its time."""
        act = getattr(owner, function)

        def counting(*arguments: Any, **options: Any) -> Any:
            started = time.thread_time()
            try:
                return act(*arguments, **options)
            finally:
                self.seconds[part] += time.thread_time() - started

        setattr(owner, function, counting)


class Steps:
    """An engine whose steps are timed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._clock = Clock()
        self._clock.follow(engine.runner.model, "forward", _MODEL)
        for function in ("prepare", "sample"):
            self._clock.follow(engine.runner._sampler, function, _SAMPLING)

    def measure(self, workload: Workload, repeats: int) -> tuple[float, list[Part]]:
        """CPU seconds of the fastest of the repeats, and its parts outside of the model.

        The engine must compute with one thread.
        """
        runs = [self._timed(run) for run in self._runs(workload, repeats)]
        seconds, model, sampling = min(runs)
        rest = seconds - model - sampling
        return seconds, [Part("sampling", sampling), Part("scheduling, batch, events", rest)]

    def measure_wall(self, workload: Workload, repeats: int) -> float:
        """Median of the wall seconds, with any number of threads."""
        seconds = []
        for act in self._runs(workload, repeats):
            started = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def _runs(self, workload: Workload, repeats: int) -> Iterator[Callable[[], object]]:
        return (self._decode if workload.queries == 1 else self._prefill)(workload, repeats)

    def _timed(self, act: Callable[[], object]) -> tuple[float, float, float]:
        before = dict(self._clock.seconds)
        started = time.thread_time()
        act()
        seconds = time.thread_time() - started
        spent = {part: self._clock.seconds[part] - before[part] for part in before}
        return seconds, spent[_MODEL], spent[_SAMPLING]

    def _decode(self, workload: Workload, repeats: int) -> Iterator[Callable[[], object]]:
        """Steps around the context: half of them before it is reached."""
        start(self.engine, workload.sequences, workload.context - repeats // 2)
        for _ in range(repeats):
            yield self.engine.step
        stop(self.engine)

    def _prefill(self, workload: Workload, repeats: int) -> Iterator[Callable[[], object]]:
        """All steps until each prompt has its first token. No prompt is in the prefix cache."""
        for repeat in range(repeats):
            for i in range(workload.sequences):
                tokens = prompt(self.engine, workload.context, 1000 * (repeat + 1) + i)
                sampling = SamplingParams(temperature=0.7)
                self.engine.add(GenerationRequest(f"p{i}", tokens, 4, sampling=sampling))
            yield self._run_prompts
            stop(self.engine)

    def _run_prompts(self) -> None:
        while not all(sequence.is_decoding for sequence in self.engine.scheduler.sequences()):
            self.engine.step()
