"""One generation's state: its tokens, how many of them are computed, and where they lie.

Knows no tensors and no other sequence.
"""

import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from inference.interface.protocol import GenerationRequest, SamplingParams
from inference.scheduling.probe import Probe

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

BAN = -100.0
"""A logit_bias of this or less forbids the token."""
SELECT = 100.0
"""With a logit_bias of this or more on any token, only such tokens can be chosen."""


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class LogitBias:
    """A request's logit_bias, made once for all its sequences and steps."""

    token_ids: IntArray
    values: FloatArray
    """-inf where the token is forbidden."""
    allowed_token_ids: IntArray
    """If not empty, only these tokens can be chosen."""


@dataclass(frozen=True)
class Steering:
    """What is added to a sequence's activations: `scale` times a row of the steering bank."""

    row: int
    scale: float
    digest: bytes
    """Names the added values; sequences share blocks of the cache only when it is equal."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice of one request, or a probe.

    `token_ids` is the prompt followed by what was sampled. The keys and values of the first
    `num_computed_tokens` of them lie in the blocks of `block_table`; the next step computes
    `num_scheduled_tokens` more.
    """

    request_id: str
    index: int
    token_ids: list[int]
    max_tokens: int
    stop_token_ids: frozenset[int]
    sampling: SamplingParams
    nice: bool
    arrival: float
    number: int
    """Counts the sequences of an engine, and decides between equals."""
    random: random.Random
    steering: Steering | None = None
    bias: LogitBias | None = None
    leader: "Sequence | None" = None
    """The request's first choice, whose prompt blocks this one reuses."""
    probe: Probe | None = None
    """Set if the tokens are only read and measured, and nothing is sampled."""
    status: Status = Status.WAITING
    started: float | None = None
    """When it left the queue for the first time."""
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_scheduled_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks so far; they outlive a preemption, since the tokens do."""
    output_token_ids: "array[int]" = field(default_factory=lambda: array("q"))
    distinct_output_token_ids: "array[int]" = field(default_factory=lambda: array("q"))
    _seen: set[int] = field(default_factory=set)
    _drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    def append(self, token_id: int) -> None:
        """Adds a sampled token."""
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)
        if token_id not in self._seen:
            self._seen.add(token_id)
            self.distinct_output_token_ids.append(token_id)
        del self._drawn[:1]

    def draw(self, ahead: bool = False) -> int:
        """32 random bits for the next token, the same until it is appended: a step may be repeated.

        `ahead`: for the one after that.
        """
        while len(self._drawn) <= ahead:
            self._drawn.append(self.random.getrandbits(32))
        return self._drawn[ahead]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Only the newest token is left to compute."""
        return self.num_uncomputed_tokens == 1

    @property
    def samples_next(self) -> bool:
        """Whether the scheduled tokens end with the newest, so that the step samples one more."""
        return self.probe is None and self.num_scheduled_tokens == self.num_uncomputed_tokens

    @property
    def num_reusable_tokens(self) -> int:
        """How many tokens at the beginning need not be computed if the cache has them.

        The newest is computed in any case, since the step that computes it samples. What a probe
        measures is computed, and so is the token before, which predicts the first of it.
        """
        return self.num_tokens - 1 if self.probe is None else self.probe.content_start - 1

    @property
    def steering_digest(self) -> bytes:
        return b"" if self.steering is None else self.steering.digest

    @property
    def awaits_leader(self) -> bool:
        """Whether the leader is still computing the prompt that this sequence will reuse."""
        return self.leader is not None and self.leader.num_output_tokens == 0


def build_sequences(
    request: GenerationRequest,
    arrival: float,
    numbers: Iterator[int],
    seeds: random.Random,
    steering: Steering | None = None,
) -> list[Sequence]:
    """The n sequences of a request; each draws its own random numbers from a seed of its own."""
    sequences: list[Sequence] = []
    bias = _build_bias(request.sampling.logit_bias)
    for index in range(request.n):
        sequences.append(
            Sequence(
                request_id=request.request_id,
                index=index,
                token_ids=list(request.prompt_token_ids),
                max_tokens=request.max_tokens,
                stop_token_ids=frozenset(request.stop_token_ids),
                sampling=request.sampling,
                nice=request.nice,
                arrival=arrival,
                number=next(numbers),
                random=random.Random(seeds.getrandbits(64)),  # noqa: S311 - sampling, not secrets
                steering=steering,
                bias=bias,
                leader=sequences[0] if sequences else None,
            )
        )
    return sequences


def build_probe_sequence(probe: Probe, arrival: float, number: int, steering: Steering | None) -> Sequence:
    """A sequence of low priority that belongs to no request and ends when it is computed."""
    return Sequence(
        request_id="",
        index=0,
        token_ids=probe.token_ids,
        max_tokens=0,
        stop_token_ids=frozenset(),
        sampling=SamplingParams(),
        nice=True,
        arrival=arrival,
        number=number,
        random=random.Random(0),  # noqa: S311 - never drawn from
        steering=steering,
        probe=probe,
    )


def _build_bias(logit_bias: dict[int, float]) -> LogitBias | None:
    if not logit_bias:
        return None
    token_ids = np.fromiter(logit_bias.keys(), np.int64, len(logit_bias))
    given = np.fromiter(logit_bias.values(), np.float64, len(logit_bias))
    # Beyond +-100 a bias says no more than at it, and could be too large for a float32.
    values = np.where(given <= BAN, -np.inf, np.minimum(given, SELECT)).astype(np.float32)
    return LogitBias(token_ids, values, token_ids[given >= SELECT])
