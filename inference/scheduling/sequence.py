"""The state of one sequence: its tokens, how many of them are computed, and its KV cache blocks.

Knows no tensors.
"""

import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from inference.interface.requests import GenerationRequest, SamplingParams
from inference.scheduling.probe import Answer, Probe
from inference.scheduling.steering import Condition, Reader, Steering

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

BAN = -100.0
"""A logit_bias of at most this value bans the token."""
SELECT = 100.0
"""If any token has a logit_bias of at least this value, only such tokens can be sampled."""


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class LogitBias:
    """A request's logit_bias as arrays, built once for all its sequences and steps."""

    token_ids: IntArray
    values: FloatArray
    """The biases in the order of `token_ids`; -inf bans a token."""
    allowed_token_ids: IntArray
    """If not empty, only these tokens can be sampled."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice of a request, or a measurement: a probe of a training or a reading, or a training's answer.

    `token_ids` is the prompt followed by the sampled tokens. The blocks of `block_table` hold the keys
    and values of the first `num_computed_tokens` tokens. The next step computes `num_scheduled_tokens`
    more.
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
    """Serial number of the sequence in its engine. Decides between sequences of equal rank."""
    random: random.Random
    steering: Steering | None = None
    condition: Condition | None = None
    """Decides whether `steering` is used. Then the prompt is never steered."""
    readers: tuple[Reader, ...] = ()
    """What to read at the sequence's own positions."""
    bias: LogitBias | None = None
    leader: "Sequence | None" = None
    """The choice of the same request that computes the prompt. This sequence then shares its blocks."""
    probe: Probe | None = None
    """Set if the sequence is a probe: the model reads its tokens, and nothing is sampled."""
    answer: Answer | None = None
    """Set if the sequence generates an answer for a training."""
    status: Status = Status.WAITING
    started: float | None = None
    """When the sequence left the queue for the first time."""
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_scheduled_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_table_version: int = 0
    """Changes when the sequence loses its blocks. Until then, it only gets new ones at the end."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Hashes of the full blocks so far. A preemption keeps them, because it keeps the tokens."""
    output_token_ids: "array[int]" = field(default_factory=lambda: array("q"))
    _drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    def append(self, token_id: int) -> None:
        """Adds a sampled token."""
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)
        del self._drawn[:1]

    def draw(self, ahead: bool = False) -> int:
        """32 random bits for the next token, or with `ahead` for the token after it.

        The bits stay the same until the token is appended, because a step that fails is repeated.
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
        """Whether only the newest token is left to compute."""
        return self.num_uncomputed_tokens == 1

    @property
    def samples_next(self) -> bool:
        """Whether the scheduled tokens include the newest token, so that the step samples the next one."""
        return self.probe is None and self.num_scheduled_tokens == self.num_uncomputed_tokens

    @property
    def belongs_to_request(self) -> bool:
        return self.probe is None and self.answer is None

    @property
    def num_reusable_tokens(self) -> int:
        """How many tokens at the beginning may come from the prefix cache.

        The newest token is always computed, because the next token is sampled from its logits. A
        probe's content is always computed, and so is the token before it if it predicts the content.
        Positions to be read are always computed.
        """
        reusable = self.num_tokens - 1 if self.probe is None else self.probe.first_needed
        return min(
            [reusable, *(reader.first for reader in self.pending_readers if self.num_output_tokens == 0)]
        )

    @property
    def pending_readers(self) -> tuple[Reader, ...]:
        """The readers whose positions are not all computed yet."""
        if self.condition is None or self.condition.met is not None:
            return self.readers
        return (*self.readers, self.condition.reader)

    @property
    def active_steering(self) -> Steering | None:
        """The steering, unless a condition is not met or not decided yet."""
        return self.steering if self.condition is None or self.condition.met else None

    def steering_digest(self, first: int, end: int) -> bytes:
        """Identifies the steering at the positions from `first` to before `end`."""
        steering = self.active_steering
        return b"" if steering is None else steering.digest(first, end)

    @property
    def awaits_leader(self) -> bool:
        """Whether the leader has not yet computed the prompt that this sequence will share."""
        return self.leader is not None and self.leader.num_output_tokens == 0


def build_sequences(
    request: GenerationRequest,
    arrival: float,
    numbers: Iterator[int],
    seeds: random.Random,
    steering: Steering | None = None,
    condition: Condition | None = None,
    build_readers: Callable[[], tuple[Reader, ...]] = tuple,
) -> list[Sequence]:
    """The n sequences of a request. Each has its own random stream, with a seed drawn from `seeds`.

    `build_readers` makes the readers of one sequence.
    """
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
                condition=condition,
                readers=build_readers(),
                bias=bias,
                leader=sequences[0] if sequences else None,
            )
        )
    return sequences


def build_probe_sequence(probe: Probe, arrival: float, number: int) -> Sequence:
    """A sequence for a probe. It has low priority, belongs to no request, and samples nothing."""
    return _build_measurement(
        probe.token_ids, arrival, number, probe.steering, probe=probe, readers=probe.readers
    )


def build_answer_sequence(answer: Answer, arrival: float, number: int) -> Sequence:
    """A sequence that generates an answer for a training. It has low priority and belongs to no request."""
    return _build_measurement(
        answer.prompt_token_ids,
        arrival,
        number,
        answer.steering,
        answer=answer,
        max_tokens=answer.max_tokens,
        stop_token_ids=frozenset(answer.stop_token_ids),
    )


def _build_measurement(
    token_ids: list[int],
    arrival: float,
    number: int,
    steering: Steering | None,
    *,
    probe: Probe | None = None,
    readers: tuple[Reader, ...] = (),
    answer: Answer | None = None,
    max_tokens: int = 0,
    stop_token_ids: frozenset[int] = frozenset(),
) -> Sequence:
    return Sequence(
        request_id="",
        index=0,
        token_ids=list(token_ids),
        max_tokens=max_tokens,
        stop_token_ids=stop_token_ids,
        sampling=SamplingParams(temperature=0.0),
        nice=True,
        arrival=arrival,
        number=number,
        random=random.Random(0),  # noqa: S311 - not drawn from at temperature 0
        steering=steering,
        readers=readers,
        probe=probe,
        answer=answer,
    )


def _build_bias(logit_bias: dict[int, float]) -> LogitBias | None:
    if not logit_bias:
        return None
    token_ids = np.fromiter(logit_bias.keys(), np.int64, len(logit_bias))
    given = np.fromiter(logit_bias.values(), np.float64, len(logit_bias))
    selected = given >= SELECT
    values = np.where(given <= BAN, -np.inf, given)
    if selected.any():  # Only their differences matter. Large numbers would absorb the logits in a float32.
        values[selected] += SELECT - given[selected].max()
    with np.errstate(over="ignore"):
        return LogitBias(token_ids, values.astype(np.float32), token_ids[selected])
