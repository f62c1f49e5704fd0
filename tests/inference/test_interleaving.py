"""Tests that requests in any order get the same output as alone, and that the engine then holds no resources.

The engine is the real one. Its model is a hash function that reads the states of the earlier tokens through
the block tables. A block that is reused too early, shared by mistake or not written changes the output.
"""

import hashlib
import random
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference.compute.sampler import NOT_A_TOKEN
from inference.engine import Engine
from inference.interface.config import EngineConfig
from inference.interface.protocol import (
    FinishReason,
    GenerationRequest,
    RefusalCode,
    SamplingParams,
    SteeringSpec,
)
from inference.runner.model_runner import SampledToken
from inference.scheduling.sequence import Sequence
from inference.steering.bank import SteeringBank
from inference.steering.directions import Calibration, Direction

VOCAB_SIZE = 9
POISON = 0
"""Logits after this token are not finite. It is never sampled."""
BEGINNING = [5, 6, 7, 8] * 6
CONCEPTS = ("warm", "cold")
NOTHING = b"not written"


def state_of(token_id: int, digest: bytes, before: list[bytes]) -> bytes:
    """The state that a token stores in the cache. It depends on the states of all tokens before it."""
    return hashlib.blake2b(bytes([token_id]) + digest + b"".join(before), digest_size=8).digest()


def sample(state: bytes, drawn: int) -> int:
    mixed = hashlib.blake2b(state + drawn.to_bytes(4, "big"), digest_size=8).digest()
    return 1 + int.from_bytes(mixed, "big") % (VOCAB_SIZE - 1)


@dataclass(frozen=True)
class FakeStep:
    """Like model_runner.Step, with the positions and tokens that the device knows."""

    sequences: list[Sequence]
    positions: dict[Sequence, int]
    """Position of the newest token, for each sequence that samples."""
    tokens: dict[Sequence, int]
    single: bool
    """Whether each sequence computed one token and samples."""

    def read(self) -> list[SampledToken]:
        return [SampledToken(sequence, token_id, None) for sequence, token_id in self.tokens.items()]


@dataclass
class FakeRunner:
    """A ModelRunner whose cache holds states. `runs_ahead`: whether steps can be launched ahead."""

    num_blocks: int
    block_size: int
    runs_ahead: bool
    faults: int = 0
    """Number of the next launches with several sequences that fail, after the computation."""
    cache: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = SimpleNamespace(
            vocab_size=VOCAB_SIZE,
            context_length=None,
            layers=[None],
            hidden_size=len(CONCEPTS),
            device=torch.device("cpu"),
        )
        self.bank = SteeringBank(64, (0,), len(CONCEPTS), torch.device("cpu"))

    def launch(self, scheduled: list[Sequence]) -> FakeStep:
        positions, tokens = {}, {}
        for sequence in scheduled:
            assert sequence.num_scheduled_tokens >= 1
            end = sequence.num_computed_tokens + sequence.num_scheduled_tokens
            for position in range(sequence.num_computed_tokens, end):
                self._compute(sequence, position, sequence.token_ids[position])
            if sequence.samples_next:
                positions[sequence] = end - 1
                tokens[sequence] = self._sample(sequence, end - 1, sequence.token_ids, ahead=False)
        self._fail(scheduled)
        single = all(s.num_scheduled_tokens == 1 and s in tokens for s in scheduled)
        return FakeStep(scheduled, positions, tokens, single)

    def can_be_followed(self, step: FakeStep) -> bool:
        started = all(sequence.num_computed_tokens for sequence in step.sequences)
        return self.runs_ahead and step.single and started and len(step.sequences) == len(step.tokens)

    def launch_after(self, step: FakeStep) -> FakeStep:
        positions = {sequence: position + 1 for sequence, position in step.positions.items()}
        tokens = {}
        for sequence, token_id in step.tokens.items():
            clamped = max(token_id, 0)
            self._compute(sequence, positions[sequence], clamped)
            token_ids = [*sequence.token_ids, clamped]
            tokens[sequence] = self._sample(sequence, positions[sequence], token_ids, ahead=True)
        self._fail(step.sequences)
        return FakeStep(step.sequences, positions, tokens, single=True)

    def _fail(self, sequences: list[Sequence]) -> None:
        if self.faults and len(sequences) > 1:
            self.faults -= 1
            raise RuntimeError("an operation failed")

    def _compute(self, sequence: Sequence, position: int, token_id: int) -> None:
        before = [self.cache.get(self._slot(sequence, p), NOTHING) for p in range(position)]
        self.cache[self._slot(sequence, position)] = state_of(token_id, sequence.steering_digest, before)

    def _sample(self, sequence: Sequence, position: int, token_ids: list[int], ahead: bool) -> int:
        if POISON in token_ids:
            return NOT_A_TOKEN
        drawn = sequence.draw(ahead) if sequence.sampling.temperature else 0
        return sample(self.cache[self._slot(sequence, position)], drawn)

    def _slot(self, sequence: Sequence, position: int) -> int:
        return (
            sequence.block_table[position // self.block_size] * self.block_size + position % self.block_size
        )


@dataclass
class Choice:
    """One choice of a request, as the client sees it."""

    expected: list[int]
    finish: FinishReason
    token_ids: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    cancelled: bool = False
    """Whether it was aborted or failed."""

    @property
    def ended(self) -> bool:
        return self.cancelled or self.reason is not None


def run_alone(sequence: Sequence) -> Choice:
    """The expected output of a new sequence, computed without any other sequence."""
    draws, digest = deepcopy(sequence.random), sequence.steering_digest
    token_ids, states, outputs = list(sequence.token_ids), [], []
    while True:
        for token_id in token_ids[len(states) :]:
            states.append(state_of(token_id, digest, list(states)))
        drawn = draws.getrandbits(32) if sequence.sampling.temperature else 0
        outputs.append(sample(states[-1], drawn))
        token_ids.append(outputs[-1])
        if outputs[-1] in sequence.stop_token_ids:
            return Choice(outputs, FinishReason.STOP)
        if len(outputs) == sequence.max_tokens:
            return Choice(outputs, FinishReason.LENGTH)


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
            steering=SteeringSpec(tuple(self.concepts), 1.0) if self.concepts else None,
        )


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
        poison=st.sampled_from([False] * 9 + [True]),
    ),
    min_size=1,
    max_size=5,
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
        self.engine = Engine(self.runner, EngineConfig(block_size=block_size, seed=0, **config))
        self.engine.scheduler.clock = self._clock
        self.engine.steerer.calibration = Calibration(norms=(1.0,), cap=1.0)
        for column, concept in enumerate(CONCEPTS):
            self.engine.steerer.add(concept, Direction(np.eye(len(CONCEPTS))[column : column + 1], 0.1))
        self.requests: dict[str, dict[int, Choice]] = {}
        self.poisoned: set[str] = set()
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
        refusal = self.engine.add(spec.request(request_id)).refusal
        if refusal is not None:
            assert refusal in (RefusalCode.CONTEXT_LENGTH_EXCEEDED, RefusalCode.QUEUE_FULL)
            return
        sequences = self.engine._sequences[request_id]
        self.requests[request_id] = {index: run_alone(sequence) for index, sequence in sequences.items()}
        if spec.poison:
            self.poisoned.add(request_id)

    @precondition(lambda self: self.requests)
    @rule(which=st.randoms(use_true_random=False), index=st.one_of(st.none(), st.integers(0, 3)))
    def abort(self, which: random.Random, index: int | None) -> None:
        request_id = which.choice(list(self.requests))
        self.engine.abort(request_id, index)
        for position, choice in self.requests[request_id].items():
            choice.cancelled |= not choice.ended and index in (None, position)

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
            choice.reason = event.finish_reason
            assert choice.token_ids == choice.expected[: len(choice.token_ids)]
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
        assert self.runner.bank.num_free_rows == 64


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
