"""A text that is read and not continued, to measure what the model makes of it. Knows no tensors."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array64 = NDArray[np.float64]
Array32 = NDArray[np.float32]

MAX_TOKENS_IN_FLIGHT = 256
"""Of the content of probes: what training adds to a step at most, unless a single text is longer."""
MAX_TOKENS_BESIDE_REQUESTS = 64
"""The same while requests run, so that their tokens come little later than without."""


@dataclass(eq=False)
class Probe:
    """`prompt_token_ids` and then the content, which is what is measured.

    The content's hidden states, summed over its tokens, and its log probability are there when all of it
    is computed.
    """

    prompt_token_ids: list[int]
    content_token_ids: list[int]
    vectors: Array32 | None = None  # [num steered blocks, hidden_size], added while it is read
    captures: bool = False
    """Whether hidden states are wanted; the log probability always is."""
    hidden_sum: Array64 = field(init=False)  # [num_layers, hidden_size] of the block outputs
    norm_sum: Array64 = field(init=False)  # [num_layers] of the norms of the block outputs
    logprobs: Array64 = field(init=False)  # [number of content tokens]

    def __post_init__(self) -> None:
        self.logprobs = np.full(len(self.content_token_ids), np.nan)
        self.clear(0, 0)

    def clear(self, num_layers: int, hidden_size: int) -> None:
        """Sets the sums to zero, before the content is computed or computed once more."""
        self.hidden_sum = np.zeros((num_layers, hidden_size))
        self.norm_sum = np.zeros(num_layers)

    @property
    def token_ids(self) -> list[int]:
        return self.prompt_token_ids + self.content_token_ids

    @property
    def content_start(self) -> int:
        """The position of the first token that is measured; never 0, which nothing comes before."""
        return len(self.prompt_token_ids)

    @property
    def mean_hidden(self) -> Array64:
        """[num_layers, hidden_size], over the content tokens."""
        return self.hidden_sum / len(self.content_token_ids)

    @property
    def mean_norm(self) -> Array64:
        """[num_layers], over the content tokens."""
        return self.norm_sum / len(self.content_token_ids)

    @property
    def mean_logprob(self) -> float:
        """Nats per content token."""
        return float(self.logprobs.mean())


@dataclass(frozen=True)
class ProbeSpan:
    """The part of a probe's text that one step computes, as indices into the step's tokens."""

    probe: Probe
    scored_tokens: range
    """Those that predict a token of the content."""
    scored_content: slice
    """The tokens of the content that they predict."""
    captured_tokens: slice
    """The content itself."""
    starts_content: bool
    """Whether the measured part begins here; not for the first time, if the probe was preempted."""


def locate(probe: Probe, first_position: int, tokens: range) -> ProbeSpan:
    """`tokens`: where the part from `first_position` lies among the step's tokens."""
    before = probe.content_start - 1
    end = first_position + len(tokens)
    first = max(first_position, before)
    last = max(first, min(end, before + len(probe.content_token_ids)))
    offset = tokens.start - first_position
    return ProbeSpan(
        probe=probe,
        scored_tokens=range(first + offset, last + offset),
        scored_content=slice(first - before, last - before),
        captured_tokens=slice(max(first_position, probe.content_start) + offset, tokens.stop),
        starts_content=first_position <= before < end,
    )
