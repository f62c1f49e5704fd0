"""Tests that requests in any order get the same output as alone, and that the engine then holds no resources.

The engine is the real one. Its model is a hash function that reads the states of the earlier tokens through
the block tables. A block that is reused too early, shared by mistake or not written changes the output.
"""

import itertools
import random
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference.engine import Engine
from inference.interface.concepts import ReadingsResult, ReadTexts
from inference.interface.config import EngineConfig
from inference.interface.requests import (
    FinishReason,
    GenerationRequest,
    RefusalCode,
    SamplingParams,
    SteeringCondition,
    SteeringScope,
    SteeringSpec,
)
from inference.scheduling.sequence import Sequence
from inference.steering.directions import Calibration, Direction
from tests.inference.fake_runner import (
    HIDDEN_SIZE,
    POISON,
    VOCAB_SIZE,
    FakeRunner,
    digest_of,
    project,
    sample,
    state_of,
)

BEGINNING = [5, 6, 7, 8] * 6
CONCEPTS = ("warm", "cold")


@dataclass
class Choice:
    """One choice of a request, as the client sees it."""

    expected: list[int]
    finish: FinishReason
    expected_readings: list[list[float] | None]
    token_ids: list[int] = field(default_factory=list)
    readings: list[list[float] | None] = field(default_factory=list)
    reason: FinishReason | None = None
    cancelled: bool = False
    """Whether it was aborted or failed."""

    @property
    def ended(self) -> bool:
        return self.cancelled or self.reason is not None


def states_of(token_ids: list[int], digests: list[bytes]) -> list[bytes]:
    states: list[bytes] = []
    for token_id, digest in zip(token_ids, digests, strict=True):
        states.append(state_of(token_id, digest, list(states)))
    return states


def is_met(spec: SteeringSpec, sequence: Sequence) -> bool:
    """Whether the condition is met, if there is one. Reads the unsteered prompt, except its beginning."""
    if spec.condition is None:
        return True
    assert sequence.condition is not None
    reader = sequence.condition.reader
    states = states_of(sequence.token_ids, [b""] * len(sequence.token_ids))
    mean = float(np.mean([project(state, reader) for state in states[1:]] or [float("nan")]))
    above, below = spec.condition.above, spec.condition.below
    return (above is None or mean > above) and (below is None or mean < below)


def is_steered(spec: SteeringSpec, position: int, num_prompt: int) -> bool:
    if spec.condition is not None or spec.scope is SteeringScope.ANSWER:
        return position >= num_prompt
    return position > 0 and (spec.scope is SteeringScope.ALL or position < num_prompt)


def run_alone(request: GenerationRequest, sequence: Sequence) -> Choice:
    """The expected output of a new sequence, computed without any other sequence."""
    draws, spec, num_prompt = deepcopy(sequence.random), request.steering, len(sequence.token_ids)
    digest = digest_of(sequence.steering) if spec is not None and is_met(spec, sequence) else b""
    token_ids, states, outputs = list(sequence.token_ids), [], []
    while True:
        for position in range(len(states), len(token_ids)):
            steered = spec is not None and is_steered(spec, position, num_prompt)
            states.append(state_of(token_ids[position], digest if steered else b"", list(states)))
        if outputs and outputs[-1] in sequence.stop_token_ids:
            finish = FinishReason.STOP
            break
        if len(outputs) == sequence.max_tokens:
            finish = FinishReason.LENGTH
            break
        drawn = draws.getrandbits(32) if sequence.sampling.temperature else 0
        outputs.append(sample(states[-1], drawn))
        token_ids.append(outputs[-1])
    readings: list[list[float] | None] = [
        [project(state, reader) for reader in sequence.readers] or None for state in states[num_prompt:]
    ]
    if finish is FinishReason.STOP:
        readings[-1] = None
    return Choice(outputs, finish, readings)


@dataclass(frozen=True)
class RequestSpec:
    """The parameters of a request. Most prompts share a prefix: `shared` tokens of BEGINNING, then `own`."""

    shared: int
    own: list[int]
    max_tokens: int
    n: int
    nice: bool
    drawn: bool
    stops: set[int]
    concepts: list[str]
    scope: SteeringScope
    condition: SteeringCondition | None
    readings: list[str]
    poison: bool

    def request(self, request_id: str) -> GenerationRequest:
        return GenerationRequest(
            request_id,
            [*BEGINNING[: self.shared], *self.own, *[POISON] * self.poison],
            self.max_tokens,
            n=self.n,
            nice=self.nice,
            sampling=SamplingParams(temperature=float(self.drawn)),
            stop_token_ids=tuple(self.stops),
            steering=SteeringSpec(dict.fromkeys(self.concepts, 1.0), self.scope, condition=self.condition)
            if self.concepts
            else None,
            readings=tuple(self.readings),
        )


CONDITIONS = [SteeringCondition("warm", above=0.5), SteeringCondition("cold", above=0.3, below=0.6)]
REQUESTS = st.lists(
    st.builds(
        RequestSpec,
        shared=st.sampled_from([0, 1, 7, 16, 21, len(BEGINNING)]),
        own=st.lists(st.sampled_from(BEGINNING), min_size=1, max_size=6),
        max_tokens=st.integers(1, 14),
        n=st.sampled_from([1, 1, 1, 2, 4]),
        nice=st.booleans(),
        drawn=st.booleans(),
        stops=st.sets(st.integers(1, VOCAB_SIZE - 1), max_size=1),
        concepts=st.lists(st.sampled_from(CONCEPTS), max_size=2),
        scope=st.sampled_from(SteeringScope),
        condition=st.sampled_from([None, None, *CONDITIONS]),
        readings=st.sampled_from([[], [], ["warm"], ["cold", "warm"]]),
        poison=st.sampled_from([False] * 9 + [True]),
    ),
    min_size=1,
    max_size=5,
)


TEXTS = st.lists(
    st.tuples(
        st.sampled_from([1, 7, 16]),
        st.lists(st.sampled_from([*BEGINNING, POISON]), min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=3,
)


class Interleaving(RuleBasedStateMachine):
    """Requests come, go and run in any order, on engines of any size."""

    @initialize(
        first=REQUESTS,
        num_blocks=st.integers(8, 40),
        block_size=st.integers(1, 4),
        max_batch_tokens=st.sampled_from([1, 3, 5, 8, 13, 24]),
        max_running=st.integers(1, 8),
        max_queued=st.integers(2, 20),
        runs_ahead=st.booleans(),
        clock=st.integers(0, 2**32).map(random.Random),
    )
    def start(
        self,
        first: list[RequestSpec],
        num_blocks: int,
        block_size: int,
        runs_ahead: bool,
        clock: random.Random,
        **config: int,
    ) -> None:
        self.now = 0.0
        self.ticks = clock
        self.runner = FakeRunner(num_blocks, block_size, runs_ahead)
        self.limit = num_blocks * block_size
        self.engine = Engine(self.runner, EngineConfig(block_size=block_size, seed=0, **config))
        self.engine.scheduler.clock = self._clock
        self.engine.steerer.calibration = Calibration(norms=(1.0,), cap=1.0)
        for column, concept in enumerate(CONCEPTS):
            unit = np.eye(HIDDEN_SIZE, dtype=np.float32)[column : column + 1]
            direction = Direction((0,), unit, (0.1,), 1.0, 2.0, 2.0, 0, reading_range=(0.0, 1.0))
            self.engine.steerer.add(concept, direction)
        self.requests: dict[str, dict[int, Choice]] = {}
        self.poisoned: set[str] = set()
        self.texts: dict[str, list[list[float]] | None] = {}
        """The expected readings of texts. None: the reading fails."""
        self.numbers = itertools.count()
        self.submit(first)

    def _clock(self) -> float:
        """Moves on by some seconds at one call in ten, also inside a step."""
        self.now += self.ticks.expovariate(0.1) if self.ticks.random() < 0.1 else 0.0
        return self.now

    @rule(specs=REQUESTS)
    def submit(self, specs: list[RequestSpec]) -> None:
        for spec in specs:
            self._submit(spec)

    def _submit(self, spec: RequestSpec) -> None:
        request_id = f"r{len(self.requests)}"
        request = spec.request(request_id)
        refusal = self.engine.add(request).refusal
        if refusal is not None:
            assert refusal in (RefusalCode.CONTEXT_LENGTH_EXCEEDED, RefusalCode.QUEUE_FULL)
            return
        sequences = self.engine._sequences[request_id]
        self.requests[request_id] = {
            index: run_alone(request, sequence) for index, sequence in sequences.items()
        }
        if spec.poison:
            self.poisoned.add(request_id)

    @precondition(lambda self: self.requests)
    @rule(which=st.randoms(use_true_random=False), index=st.one_of(st.none(), st.integers(0, 3)))
    def abort(self, which: random.Random, index: int | None) -> None:
        request_id = which.choice(list(self.requests))
        self.engine.abort(request_id, index)
        for position, choice in self.requests[request_id].items():
            choice.cancelled |= not choice.ended and index in (None, position)

    @rule(concept=st.sampled_from(CONCEPTS), texts=TEXTS)
    def read(self, concept: str, texts: list[tuple[int, list[int]]]) -> None:
        name = f"t{next(self.numbers)}"
        prompts = [BEGINNING[:length] for length, _ in texts]
        command = ReadTexts(name, concept, prompts, [text for _, text in texts])
        if max(len(p) + len(t) for p, t in zip(prompts, command.texts, strict=True)) > self.limit:
            return
        reader = self.engine.steerer.reader(concept, 1)
        self.texts[name] = [
            [project(state, reader) for state in states_of(p + t, [b""] * len(p + t))[len(p) :]]
            for p, t in zip(prompts, command.texts, strict=True)
        ]
        if any(POISON in text for text in command.texts):
            self.texts[name] = None
        self.engine.measuring.read_texts(command)

    @precondition(lambda self: self.texts)
    @rule(which=st.randoms(use_true_random=False))
    def abort_reading(self, which: random.Random) -> None:
        name = which.choice(list(self.texts))
        del self.texts[name]
        self.engine.abort(name)

    def _check_readings(self, results: list[ReadingsResult]) -> None:
        for result in results:
            expected = self.texts.pop(result.request_id)
            if expected is None:
                assert result.readings is None
                assert "not finite" in result.detail
            else:
                assert result.readings is not None
                assert result.readings == [pytest.approx(numbers) for numbers in expected]

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 2))
    def let_launches_fail(self, count: int) -> None:
        self.runner.faults = count

    @rule(times=st.sampled_from([1, 1, 2, 3, 8]))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._step()

    def _step(self) -> None:
        self.now += 0.01
        report = self.engine.step()
        for event in report.events:
            choice = self.requests[event.request_id][event.index]
            assert not choice.ended, "an event after the last one"
            choice.token_ids.append(event.token_id)
            choice.readings.append(event.readings)
            choice.reason = event.finish_reason
            assert choice.token_ids == choice.expected[: len(choice.token_ids)]
            assert choice.readings == choice.expected_readings[: len(choice.readings)]
        self._check_readings(report.readings)
        for failure in report.failures:
            assert failure.request_id in self.poisoned
            for choice in self.requests[failure.request_id].values():
                choice.cancelled = True
        self.engine.check_integrity()

    @invariant()
    def no_block_is_lost(self) -> None:
        self.engine.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(20_000):
            if self.engine.is_idle:
                break
            self._step()
        assert self.engine.is_idle, "the engine does not become idle"
        self._step()
        for request_id, choices in self.requests.items():
            for choice in choices.values():
                assert choice.ended
                if not choice.cancelled:
                    assert request_id not in self.poisoned
                    assert (choice.token_ids, choice.reason) == (choice.expected, choice.finish)
        assert self.engine.block_manager.num_free_blocks == self.engine.block_manager.num_blocks
        assert list(self.engine.scheduler.sequences()) == []
        assert self.texts == {}, "a reading was not answered"


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
