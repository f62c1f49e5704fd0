"""What trainings and readings ask the engine for: probes, which the model reads, answers, which it generates,
and derivatives of texts' log probabilities. Knows no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from inference.scheduling.arrays import Array32, Array64
from inference.scheduling.steering import BlockVectors, Reader, Steering

MAX_TOKENS_IN_FLIGHT = 256
"""Limit for the content tokens that trainings and readings add to a step. A longer text exceeds it: like a
prompt, it is computed in steps that it may fill."""
MAX_TOKENS_BESIDE_REQUESTS = 64
"""The same limit while requests run. It is lower, so that this work hardly raises inter-token latency."""
_TOKENS_PER_ANSWER = 8


@dataclass(eq=False)
class Probe:
    """A prompt, followed by the content that is measured.

    When all tokens are computed, the probe has what it asks for: the log probability of each content token,
    the sums of the hidden states over the content tokens, and what its readers read.
    """

    prompt_token_ids: list[int]
    content_token_ids: list[int]
    steering: Steering | None = None
    readers: tuple[Reader, ...] = ()
    captures: bool = False
    """Whether to sum up hidden states."""
    scores: bool = True
    """Whether to compute log probabilities. They cost the model's head for each content token."""
    arrival: float | None = None
    """When it was asked for, by the scheduler's clock, so that all probes of a reading age together. None:
    when it is handed out."""
    hidden_sum: Array64 = field(init=False)  # [num_layers, hidden_size], sum of the layers' outputs
    norm_sum: Array64 = field(init=False)  # [num_layers], sum of the norms of the layers' outputs
    logprobs: Array64 = field(init=False)  # [number of content tokens], NaN until they are computed

    def __post_init__(self) -> None:
        self.logprobs = np.full(len(self.content_token_ids), np.nan)
        self.clear(0, 0)

    def clear(self, num_layers: int, hidden_size: int) -> None:
        """Sets the sums to zero, before the content is computed for the first time or again."""
        self.hidden_sum = np.zeros((num_layers, hidden_size))
        self.norm_sum = np.zeros(num_layers)

    @property
    def token_ids(self) -> list[int]:
        return self.prompt_token_ids + self.content_token_ids

    @property
    def content_start(self) -> int:
        """Position of the first content token. Never 0, since the token before it has to predict it."""
        return len(self.prompt_token_ids)

    @property
    def first_needed(self) -> int:
        """The first position whose output is needed: it is scored, or part of the content."""
        return self.content_start - self.scores

    @property
    def num_tokens(self) -> int:
        """How many tokens the probe adds to a step, for the limits above."""
        return len(self.content_token_ids)

    @property
    def is_finite(self) -> bool:
        """Whether the log probabilities are finite, or, if there are none, the readings."""
        measured = [self.logprobs] if self.scores else [reader.values for reader in self.readers]
        return all(np.isfinite(numbers).all() for numbers in measured)

    @property
    def mean_hidden(self) -> Array64:
        """Mean hidden states over the content tokens, [num_layers, hidden_size]."""
        return self.hidden_sum / len(self.content_token_ids)

    @property
    def mean_norm(self) -> Array64:
        """Mean norms of the hidden states over the content tokens, [num_layers]."""
        return self.norm_sum / len(self.content_token_ids)

    @property
    def mean_logprob(self) -> float:
        """Mean log probability of the content tokens, in nats."""
        return float(self.logprobs.mean())


@dataclass(eq=False)
class Answer:
    """A prompt and the most likely answer to it, which the model generates."""

    prompt_token_ids: list[int]
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    steering: Steering | None = None
    token_ids: list[int] = field(default_factory=list)
    """The answer, without the token that stopped it. Complete when the engine hands it back."""

    @property
    def num_tokens(self) -> int:
        """How many tokens the answer counts for in the limits above. A prompt is long, but computed once."""
        return _TOKENS_PER_ANSWER


@dataclass(eq=False)
class Derivative:
    """Texts whose log probabilities are differentiated by vectors that steer them, all in one batch.

    So the results do not depend on what else the engine computes. When they are computed, the derivative has
    the log probability of each text, and its gradient. Or it has a fault.
    """

    texts: list[tuple[list[int], list[int]]]
    """N times a prompt, and the content that it precedes."""
    added: BlockVectors
    """What is added to the output of decoder blocks, at every position but the first."""
    logprobs: Array64 = field(init=False)  # [N], mean over the content tokens, in nats
    gradients: Array32 = field(init=False)  # [N, *added.vectors.shape], of `logprobs` by these vectors
    fault: str = ""
    """Why they could not be computed. Empty: they could."""

    @property
    def num_tokens(self) -> int:
        """How many tokens are computed. Prompts count, since they are steered, too."""
        return sum(len(prompt) + len(content) for prompt, content in self.texts)

    def find_fault(self) -> str:
        """Why the results cannot be used. Empty: they can."""
        if not self.fault and not (np.isfinite(self.logprobs).all() and np.isfinite(self.gradients).all()):
            return "the derivatives are not finite"
        return self.fault


TrainingWork = Probe | Answer | Derivative
Work = Sequence[Probe] | Sequence[Answer] | Sequence[Derivative]
"""What a training needs next."""


@dataclass(frozen=True)
class ProbeSpan:
    """The part of a probe that one step computes."""

    probe: Probe
    scored_tokens: range
    """The step's tokens that predict a content token, as indices into the step's tokens.

    Empty if the probe is not scored."""
    scored_content: slice
    """The content tokens that they predict, as indices into the content."""
    captured_tokens: slice
    """The content tokens in this step, as indices into the step's tokens."""
    starts_content: bool
    """Whether the content begins in this step. It begins again if the probe was preempted."""


def locate(probe: Probe, first_position: int, tokens: range) -> ProbeSpan:
    """The span of a step that computes `probe` from `first_position` on, as its tokens `tokens`."""
    before = probe.content_start - 1
    end = first_position + len(tokens)
    first = max(first_position, before)
    last = max(first, min(end, before + len(probe.content_token_ids))) if probe.scores else first
    offset = tokens.start - first_position
    return ProbeSpan(
        probe=probe,
        scored_tokens=range(first + offset, last + offset),
        scored_content=slice(first - before, last - before),
        captured_tokens=slice(max(first_position, probe.content_start) + offset, tokens.stop),
        starts_content=first_position <= probe.content_start < end,
    )
