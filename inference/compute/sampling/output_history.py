"""Keeps the output tokens of sequences on the device, and the host's record of which tokens it has there."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from inference.compute.transfer import Arrays
from inference.scheduling.sequence import Sequence, Status

_MIN_ROWS = 8
_MIN_TOKENS = 256
_BYTES_PER_TOKEN = 4


@dataclass
class _Row:
    index: int
    num_tokens: int = 0
    """How many output tokens the row has after the steps launched so far."""


class OutputHistory:
    """One row of tokens for each sequence that was in a batch. The table grows with its use.

    Usage for each step: `prepare`, upload of the arrays, `restore`, and after sampling `append`.
    """

    def __init__(self, device: torch.device, max_rows: int) -> None:
        """`max_rows`: more rows are used only if a single batch needs them."""
        self._table = torch.zeros(0, _MIN_TOKENS, dtype=torch.int32, device=device)
        self._max_rows = max_rows
        self._rows: dict[Sequence, _Row] = {}  # the least recently used first
        self._free: list[int] = []

    @staticmethod
    def max_bytes(max_rows: int, max_tokens: int) -> int:
        """Bytes that the table takes at most, if no output is longer than `max_tokens`."""
        capacity = 2 * max(max_tokens, _MIN_TOKENS)  # because it doubles
        return max_rows * capacity * _BYTES_PER_TOKEN * 3 // 2  # while it doubles, the old table exists too

    @property
    def num_bytes(self) -> int:
        return self._table.nbytes

    def prepare(self, sequences: list[Sequence], ahead: bool) -> Arrays:
        """Assigns rows to the sequences of a step that will append a token to each of them.

        With `ahead`, the tokens of the step before are not on the host yet. Returns the arrays to upload.
        Raises RuntimeError if the device does not have these tokens.
        """
        self._assign(sequences)
        rows = [self._rows[sequence] for sequence in sequences]
        lengths = [sequence.num_output_tokens + ahead for sequence in sequences]
        self._grow(len(self._table), max(lengths) + 1)
        # A row has other tokens if its sequence is new or if a step failed.
        stale = [i for i, row in enumerate(rows) if row.num_tokens != lengths[i]]
        if ahead and stale:
            raise RuntimeError("the device does not have the output tokens of the step before")
        for row, length in zip(rows, lengths, strict=True):
            row.num_tokens = length + 1
        restored = [i for i in stale if lengths[i]]
        outputs = [np.array(sequences[i].output_token_ids, np.int32) for i in restored]
        slots = np.array([row.index for row in rows], np.int64)
        return {
            "slots": slots,
            "lengths": np.array(lengths, np.int64)[:, None],
            "restored_slots": np.repeat(slots[restored], [len(output) for output in outputs]),
            "restored_columns": np.concatenate([np.arange(len(output)) for output in outputs] or [slots[:0]]),
            "restored_tokens": np.concatenate(outputs or [np.zeros(0, np.int32)]),
        }

    def restore(self, uploaded: dict[str, torch.Tensor]) -> None:
        """Writes the tokens that the device does not have."""
        if len(uploaded["restored_slots"]):
            places = uploaded["restored_slots"], uploaded["restored_columns"]
            self._table[places] = uploaded["restored_tokens"]

    def read(
        self, slots: torch.Tensor, lengths: torch.Tensor, longest: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `longest` token ids [R, longest] of rows, and which of them are counted.

        Entries after a row's length [R, 1] are not counted, and neither is NOT_A_TOKEN.
        """
        ids = self._table[:, :longest].index_select(0, slots).long()
        return ids, (torch.arange(longest, device=ids.device) < lengths) & (ids >= 0)

    def append(self, slots: torch.Tensor, lengths: torch.Tensor, tokens: torch.Tensor) -> None:
        """Appends one token [R] to each row."""
        self._table[slots, lengths[:, 0]] = tokens.int()

    def _assign(self, sequences: list[Sequence]) -> None:
        batch = set(sequences)
        self._release(other for other in list(self._rows) if other.status is Status.FINISHED)
        missing = [sequence for sequence in sequences if sequence not in self._rows]
        if (shortage := len(missing) - len(self._free)) > 0:
            num_rows = len(self._table)
            wanted = max(num_rows + shortage, 2 * num_rows, _MIN_ROWS)
            self._grow(max(min(wanted, self._max_rows), len(sequences), num_rows), 0)
        others = (other for other in list(self._rows) if other not in batch)
        while len(missing) > len(self._free):
            self._release([next(others)])
        for sequence in missing:
            self._rows[sequence] = _Row(self._free.pop())
        for sequence in sequences:
            self._rows[sequence] = self._rows.pop(sequence)

    def _release(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self._free.append(self._rows.pop(sequence).index)

    def _grow(self, num_rows: int, num_tokens: int) -> None:
        """Makes the table large enough."""
        old_rows, capacity = self._table.shape
        if num_tokens > capacity:
            capacity = max(num_tokens, 2 * capacity)
        if (num_rows, capacity) == (old_rows, self._table.shape[1]):
            return
        table = self._table.new_zeros(num_rows, capacity)
        table[:old_rows, : self._table.shape[1]] = self._table
        self._table = table
        self._free.extend(range(num_rows - 1, old_rows - 1, -1))
