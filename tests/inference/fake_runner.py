"""A ModelRunner without a model: a hash function that reads the states of earlier tokens in the KV cache."""

import hashlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from inference.compute.sampler import NOT_A_TOKEN
from inference.runner.model_runner import SampledToken, _needs_outcome
from inference.scheduling.sequence import Sequence
from inference.scheduling.steering import Reader, Steering

VOCAB_SIZE = 9
HIDDEN_SIZE = 2
POISON = 0
"""Logits after this token are not finite. It is never sampled."""
NOTHING = b"not written"


def state_of(token_id: int, digest: bytes, before: list[bytes]) -> bytes:
    """The state that a token stores in the cache. It depends on its steering and on all states before it."""
    return hashlib.blake2b(bytes([token_id]) + digest + b"".join(before), digest_size=8).digest()


def digest_of(steering: Steering | None) -> bytes:
    """What is done to the activations at a steered position."""
    return b"" if steering is None else b"".join(vectors.key for vectors in steering.vectors)


def project(state: bytes, reader: Reader) -> float:
    """What a reader reads from a state."""
    mixed = hashlib.blake2b(state + reader.direction.key, digest_size=8).digest()
    return int.from_bytes(mixed, "big") / 2**64


def sample(state: bytes, drawn: int) -> int:
    mixed = hashlib.blake2b(state + drawn.to_bytes(4, "big"), digest_size=8).digest()
    return 1 + int.from_bytes(mixed, "big") % (VOCAB_SIZE - 1)


@dataclass(frozen=True)
class FakeStep:
    """Like model_runner.Step, with the positions, steering and tokens that the device knows."""

    sequences: list[Sequence]
    positions: dict[Sequence, int]
    """Position of the newest token, for each sequence that samples."""
    digests: dict[Sequence, bytes]
    """What is done to the activations at this position."""
    tokens: dict[Sequence, int]
    readings: list[tuple[Reader, int, float]]
    """Reader, position and projection of each reading."""
    finite: list[tuple[Sequence, bool]]
    """The probes, and whether what was computed of them is finite."""
    single: bool
    """Whether each sequence computed one token and samples."""

    def read(self) -> list[SampledToken]:
        for reader, position, projection in self.readings:
            reader.store(position, projection)
        for sequence, is_finite in self.finite:
            assert sequence.probe is not None
            sequence.probe.logprobs[:] = 0.0 if is_finite else float("nan")
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
            hidden_size=HIDDEN_SIZE,
            device=torch.device("cpu"),
        )

    def launch(self, scheduled: list[Sequence]) -> FakeStep:
        positions, digests, tokens, readings, finite = {}, {}, {}, [], []
        for sequence in scheduled:
            assert sequence.num_scheduled_tokens >= 1
            end = sequence.num_computed_tokens + sequence.num_scheduled_tokens
            steering = sequence.active_steering
            for position in range(sequence.num_computed_tokens, end):
                covered = steering is not None and steering.covered(position, position + 1)
                digests[sequence] = digest_of(steering) if covered else b""
                self._compute(sequence, position, sequence.token_ids[position], digests[sequence])
            for reader in sequence.pending_readers:
                covered = reader.covered(sequence.num_computed_tokens, end)
                readings += [(reader, p, self._project(sequence, p, reader)) for p in covered]
            if sequence.samples_next:
                positions[sequence] = end - 1
                tokens[sequence] = self._sample(sequence, end - 1, sequence.token_ids, ahead=False)
            if sequence.probe is not None:
                finite.append((sequence, POISON not in sequence.token_ids[:end]))
        self._fail(scheduled)
        single = all(s.num_scheduled_tokens == 1 and s in tokens for s in scheduled)
        return FakeStep(scheduled, positions, digests, tokens, readings, finite, single)

    def can_be_followed(self, step: FakeStep) -> bool:
        all_run = len(step.sequences) == len(step.tokens)
        return self.runs_ahead and step.single and all_run and not any(map(_needs_outcome, step.sequences))

    def launch_after(self, step: FakeStep) -> FakeStep:
        """Like the real one, it does the same to the activations as the step before."""
        positions = {sequence: position + 1 for sequence, position in step.positions.items()}
        tokens = {}
        for sequence, token_id in step.tokens.items():
            clamped = max(token_id, 0)
            self._compute(sequence, positions[sequence], clamped, step.digests[sequence])
            token_ids = [*sequence.token_ids, clamped]
            tokens[sequence] = self._sample(sequence, positions[sequence], token_ids, ahead=True)
        self._fail(step.sequences)
        return FakeStep(step.sequences, positions, step.digests, tokens, [], [], single=True)

    def _fail(self, sequences: list[Sequence]) -> None:
        if self.faults and len(sequences) > 1:
            self.faults -= 1
            raise RuntimeError("an operation failed")

    def _compute(self, sequence: Sequence, position: int, token_id: int, digest: bytes) -> None:
        before = [self.cache.get(self._slot(sequence, p), NOTHING) for p in range(position)]
        self.cache[self._slot(sequence, position)] = state_of(token_id, digest, before)

    def _sample(self, sequence: Sequence, position: int, token_ids: list[int], ahead: bool) -> int:
        if POISON in token_ids:
            return NOT_A_TOKEN
        drawn = sequence.draw(ahead) if sequence.sampling.temperature else 0
        return sample(self.cache[self._slot(sequence, position)], drawn)

    def _project(self, sequence: Sequence, position: int, reader: Reader) -> float:
        if sequence.probe is not None and POISON in sequence.token_ids[: position + 1]:
            return float("nan")
        return project(self.cache[self._slot(sequence, position)], reader)

    def _slot(self, sequence: Sequence, position: int) -> int:
        return (
            sequence.block_table[position // self.block_size] * self.block_size + position % self.block_size
        )
