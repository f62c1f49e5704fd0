"""Frequency and presence penalties, from output tokens that the device keeps.

So a step that is launched before the host has read the last tokens needs nothing from the host. The work
grows with the length of the outputs and not with the vocabulary.
"""

from dataclasses import dataclass

import torch

from inference.compute.sampling.output_history import OutputHistory

_MAX_ENTRIES = 2**20  # output tokens that are applied at a time, which limits the temporary memory
_BYTES_PER_ENTRY = 48  # of temporary memory


def max_bytes(max_rows: int, max_tokens: int) -> int:
    """Bytes of device memory that penalties take at most, for outputs of up to `max_tokens` tokens."""
    temporary = max(min(_MAX_ENTRIES, max_rows * max_tokens), max_tokens) * _BYTES_PER_ENTRY
    return OutputHistory.max_bytes(max_rows, max_tokens) + temporary


@dataclass(frozen=True)
class Penalties:
    """The penalties of a step: R rows of the logits have penalties."""

    history: OutputHistory
    longest: int
    """The largest number of output tokens so far."""
    rows: torch.Tensor
    """[R] rows of the logits."""
    slots: torch.Tensor
    """[R] rows of the history."""
    lengths: torch.Tensor
    """[R, 1] the number of output tokens so far."""
    frequency: torch.Tensor
    """[R, 1] float32, subtracted for each time that the token is in the output."""
    presence: torch.Tensor
    """[R, 1] float32, subtracted once if the token is in the output."""

    def apply(self, logits: torch.Tensor) -> None:
        """Subtracts the penalties from `logits` [S, vocab_size], which are contiguous."""
        if self.longest == 0:
            return
        num_rows = max(_MAX_ENTRIES // self.longest, 1)
        for start in range(0, len(self.rows), num_rows):
            self._apply(logits, slice(start, start + num_rows))

    def append(self, tokens: torch.Tensor) -> None:
        """Adds the sampled `tokens` [S] to the history."""
        self.history.append(self.slots, self.lengths, tokens[self.rows])

    def _apply(self, logits: torch.Tensor, part: slice) -> None:
        flat = logits.view(-1)
        ids, counted = self.history.read(self.slots[part], self.lengths[part], self.longest)
        # Entries that are not counted repeat the row's first token, which is counted if any is.
        ids = torch.where(counted, ids, ids[:, :1].clamp(min=0))
        places = (self.rows[part, None] * logits.shape[-1] + ids).view(-1)
        # All counted entries of a row subtract the same number, so their order does not matter.
        flat.scatter_add_(0, places, torch.where(counted, -self.frequency[part], 0.0).view(-1))
        # All entries of a token write the same number.
        once = torch.where(counted[:, :1], self.presence[part], 0.0).expand_as(ids)
        flat.scatter_(0, places, flat[places] - once.reshape(-1))
