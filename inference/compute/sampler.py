"""Samples a token from each row of logits, with the row's own parameters. Knows no model and no text.

Order: penalties, logit_bias, temperature, top_k, top_p, sampling. An option that no row of the batch uses
costs nothing.
"""

import torch

from inference.compute.sampling.logprobs import PendingLogprobs
from inference.compute.sampling.operations import NOT_A_TOKEN, PIECE, SamplingOperations
from inference.compute.sampling.output_history import OutputHistory
from inference.compute.sampling.parameters import Entries, SamplingBatch, build_batch
from inference.compute.transfer import AsyncCopy
from inference.interface.requests import TokenLogprobs
from inference.scheduling.sequence import Sequence

__all__ = ["NOT_A_TOKEN", "Sampled", "Sampler"]

_MAX_ROWS = 1024  # of the output history


class Sampled:
    """The sampled token of each row. `read` gives it once the device has computed it."""

    def __init__(self, tokens: torch.Tensor, logprobs: PendingLogprobs | None) -> None:
        self.tokens = tokens
        """[S] on the device; NOT_A_TOKEN for a row whose logits are not finite."""
        self._copy = AsyncCopy(tokens)
        self._logprobs = logprobs
        if logprobs is not None:
            logprobs.launch_copy(tokens)

    def read(self) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Waits until the device has sampled these tokens, but not for work launched later."""
        [tokens] = self._copy.read()
        num_rows = len(tokens)
        return tokens.tolist(), self._logprobs.read(num_rows) if self._logprobs else [None] * num_rows


class Sampler:
    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        operations: SamplingOperations = SamplingOperations(),
        max_rows: int = _MAX_ROWS,
    ) -> None:
        """`max_rows`: sequences with penalties whose output tokens stay on the device between two steps."""
        self.vocab_size = vocab_size
        self.device = device
        self._operations = operations
        self._history = OutputHistory(device, max_rows)

    def prepare(self, sequences: list[Sequence], ahead: bool = False) -> SamplingBatch:
        """The parameters for each sequence's next token, or with `ahead` for the token after it.

        Each batch must be sampled from before the next one is prepared. With `ahead`, raises RuntimeError if
        the step before was not sampled here.
        """
        return build_batch(sequences, ahead, self.vocab_size, self._history, self.device)

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
        """Samples from `logits` [S, vocab_size] float32 and overwrites them. Does not wait for the device."""
        logprobs = None
        if batch.logprobs is not None:
            logprobs = PendingLogprobs(logits, batch.logprobs, self._operations.find_top)
        if batch.penalties is not None:
            batch.penalties.apply(logits)
        if batch.bias is not None:
            logits.index_put_((batch.bias.rows, batch.bias.columns), batch.bias.values, accumulate=True)
        if batch.allowed_tokens is not None:
            _keep_only(logits, batch.allowed_tokens)
        tokens = self._choose(logits, batch)
        if batch.penalties is not None:
            batch.penalties.append(tokens)
        return Sampled(tokens, logprobs)

    def _choose(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        if batch.random_rows is None:
            return self._operations.choose_highest(logits)
        if len(batch.random_rows) == len(logits):
            return self._draw(logits, batch)
        tokens = self._operations.choose_highest(logits)
        tokens[batch.random_rows] = self._draw(logits[batch.random_rows], batch)
        return tokens

    def _draw(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """A sampled token [R] for each row. Overwrites `logits` [R, vocab_size]."""
        highest, sums = self._operations.weigh(logits, batch.temperature, PIECE)
        if batch.truncation is not None:
            self._operations.truncate(logits, sums, batch.truncation)
        return self._operations.invert(logits, sums, batch.uniform, highest)


def _keep_only(logits: torch.Tensor, allowed_tokens: Entries) -> None:
    selected = torch.zeros_like(logits, dtype=torch.bool)
    selected[allowed_tokens.rows, allowed_tokens.columns] = True
    logits.masked_fill_(selected.any(-1, keepdim=True) & ~selected, float("-inf"))
