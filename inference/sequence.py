"""One generation's state: its tokens, how many of them are computed, and where they lie.

Knows no tensors and no other sequence.
"""

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from inference.protocol import GenerationRequest, SamplingParams

_numbers = itertools.count()


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice of one request.

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
    random: random.Random
    steering_digest: bytes = b""
    """Names what the sequence is steered by; sequences share blocks only when it is equal."""
    leader: "Sequence | None" = None
    """The request's first choice, whose prompt blocks this one reuses."""
    number: int = field(default_factory=lambda: next(_numbers))
    status: Status = Status.WAITING
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_scheduled_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks so far; they outlive a preemption, since the tokens do."""
    _output_counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def output_counts(self) -> Counter[int]:
        """How often each token occurs in the output. Not to be changed."""
        counted = self._output_counts.total()
        self._output_counts.update(self.token_ids[self.num_prompt_tokens + counted :])
        return self._output_counts

    @property
    def is_decoding(self) -> bool:
        """Only the newest token is left to compute."""
        return self.num_uncomputed_tokens == 1

    @property
    def samples_next(self) -> bool:
        """Whether the scheduled tokens end with the newest, so that the step samples one more."""
        return self.num_scheduled_tokens == self.num_uncomputed_tokens

    @property
    def awaits_leader(self) -> bool:
        """Whether the leader is still computing the prompt that this sequence will reuse."""
        leader = self.leader
        return leader is not None and leader.status is not Status.FINISHED and leader.num_output_tokens == 0


def build_sequences(
    request: GenerationRequest, arrival: float, seeds: random.Random, steering_digest: bytes = b""
) -> list[Sequence]:
    """The n sequences of a request; each draws its own random numbers from a seed of its own."""
    sequences: list[Sequence] = []
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
                random=random.Random(seeds.getrandbits(64)),  # noqa: S311 - sampling, not secrets
                steering_digest=steering_digest,
                leader=sequences[0] if sequences else None,
            )
        )
    return sequences
