"""Sequences that belong to no request, to run steps before the server takes requests."""

import itertools
import random
from collections.abc import Iterator

from inference.interface.requests import GenerationRequest, SamplingParams
from inference.scheduling.sequence import Sequence, build_sequences
from inference.scheduling.steering import Steering

_NUMBERS = itertools.count(-1, -1)  # the engine's sequences have numbers from 0


def make_sequence(
    token_ids: list[int],
    blocks: list[int],
    num_computed_tokens: int = 0,
    sampling: SamplingParams | None = None,
    steering: Steering | None = None,
) -> Sequence:
    """A sequence whose step computes all tokens after the first `num_computed_tokens`."""
    request = GenerationRequest("", token_ids, max_tokens=1, sampling=sampling or SamplingParams())
    [sequence] = build_sequences(request, 0.0, _NUMBERS, random.Random(0), steering)  # noqa: S311
    sequence.block_table.extend(blocks)
    sequence.num_computed_tokens = num_computed_tokens
    sequence.num_scheduled_tokens = len(token_ids) - num_computed_tokens
    return sequence


def powers_of_two(most: int) -> Iterator[int]:
    """1, 2, 4, ... and `most`."""
    yield from itertools.takewhile(lambda number: number < most, (1 << i for i in range(most)))
    yield most
