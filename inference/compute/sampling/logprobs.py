"""Log probabilities of sampled tokens and of the most likely tokens, computed with the step on the device."""

from dataclasses import dataclass

import torch

from inference.compute.sampling.operations import FindTop
from inference.compute.transfer import AsyncCopy
from inference.interface.requests import TokenLogprobs


@dataclass(frozen=True)
class LogprobRows:
    """The rows of a batch for which log probabilities are reported."""

    rows: torch.Tensor
    """[P]"""
    counts: dict[int, int]
    """For each of these rows, in the same order, how many of the most likely tokens to report."""


class PendingLogprobs:
    """Log probabilities of a launched step, on the way to the host."""

    def __init__(self, logits: torch.Tensor, wanted: LogprobRows, find_top: FindTop) -> None:
        """`logits`: [S, vocab_size], before penalties and logit_bias."""
        self._wanted = wanted
        if len(wanted.counts) < len(logits):
            logits = logits[wanted.rows]
        self._logprobs: torch.Tensor | None = logits.log_softmax(-1)  # [P, vocab_size]
        most = min(max(wanted.counts.values()), logits.shape[-1])
        self._top = find_top(self._logprobs, most) if most else ()
        self._copy: AsyncCopy | None = None

    def launch_copy(self, tokens: torch.Tensor) -> None:
        """Copies what `tokens` [S], which were sampled from these logits, need. Does not wait."""
        assert self._logprobs is not None  # noqa: S101 - for the type checker
        chosen = self._logprobs.gather(-1, tokens[self._wanted.rows, None].clamp(min=0))[:, 0]
        self._copy = AsyncCopy(chosen, *self._top)
        self._logprobs = None  # as large as the logits

    def read(self, num_rows: int) -> list[TokenLogprobs | None]:
        """The log probabilities of all S rows. Waits until the copy has ended."""
        assert self._copy is not None  # noqa: S101 - for the type checker
        chosen, *top = (tensor.tolist() for tensor in self._copy.read())
        results: list[TokenLogprobs | None] = [None] * num_rows
        for i, (row, count) in enumerate(self._wanted.counts.items()):
            values, ids = (part[i][:count] for part in top) if top else ((), ())
            results[row] = TokenLogprobs(chosen[i], list(zip(ids, values, strict=True)))
        return results
