"""The block tables of running sequences, kept on the device. A step sends only the blocks that are new.

Knows which blocks a sequence has. Does not know what they contain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from inference.scheduling.sequence import Sequence

Arrays = dict[str, NDArray[np.generic]]

_LATELY = 8
"""A row that one of so many last batches used is not given away. A step has up to two batches."""
_ROWS, _NEW_ROWS, _NEW_COLUMNS, _NEW_BLOCKS = "table_rows", "new_rows", "new_columns", "new_blocks"
TABLE_CHANGES = (_NEW_ROWS, _NEW_COLUMNS, _NEW_BLOCKS)
"""The arrays that change the table, by name. They are missing if nothing changes."""


@dataclass
class _Row:
    """A sequence's row of the table."""

    index: int
    version: int
    """The sequence's `block_table_version` when blocks were last sent."""
    num_sent: int = 0
    """How many of the sequence's blocks the row contains."""
    last_used: int = 0
    """The number of the last batch with the sequence."""


class DeviceTable:
    """A table with one row per sequence, int32 [rows, columns], on the device. Never shrinks."""

    def __init__(self, device: torch.device) -> None:
        self.num_rows, self._num_columns = 8, 64
        self._table = torch.zeros(self.num_rows, self._num_columns, dtype=torch.int32, device=device)

    def reserve(self, rows: int, columns: int) -> None:
        """Makes the table at least this large. Twice as many columns as before, so that this is rare."""
        if rows <= self.num_rows and columns <= self._num_columns:
            return
        rows = max(rows, self.num_rows)
        columns = self._num_columns if columns <= self._num_columns else max(columns, 2 * self._num_columns)
        table = self._table.new_zeros(rows, columns)
        table[: self.num_rows, : self._num_columns] = self._table
        self._table, self.num_rows, self._num_columns = table, rows, columns

    def store(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Stores the new blocks of the uploaded `BlockTables.changes`. To store them twice does no harm."""
        if _NEW_ROWS in tensors:
            places = tensors[_NEW_ROWS], tensors[_NEW_COLUMNS]
            self._table.index_put_(places, tensors[_NEW_BLOCKS])

    def apply(self, tensors: Mapping[str, torch.Tensor], width: int) -> torch.Tensor:
        """Stores the new blocks, and returns the rows of a batch: int32 [N, width]."""
        self.reserve(self.num_rows, width)
        self.store(tensors)
        return self._table[tensors[_ROWS], :width]


class BlockTables:
    """What a DeviceTable contains, and which row belongs to which sequence.

    Nothing tells the table when a sequence ends. When no row is free, the sequence that is unused for longest
    loses its row; if it runs again, its blocks are sent again.
    """

    def __init__(self, device: torch.device) -> None:
        self.table = DeviceTable(device)
        self._free = list(range(self.table.num_rows))
        self._rows: dict[int, _Row] = {}  # the least recently used first
        self._batch = 0

    def changes(self, sequences: list[Sequence]) -> Arrays:
        """The arrays to upload before `apply`: the rows [N] of the sequences, and the blocks to be sent."""
        self._batch += 1
        rows = [self._row(sequence, sequences) for sequence in sequences]
        new: list[list[int]] = []
        counts, columns = [], []
        for row, sequence in zip(rows, sequences, strict=True):
            row.last_used = self._batch
            if row.version != sequence.block_table_version:
                row.version, row.num_sent = sequence.block_table_version, 0
            new.append(sequence.block_table[row.num_sent :])
            counts.append(len(new[-1]))
            columns.append(np.arange(row.num_sent, len(sequence.block_table)))
        indices = np.array([row.index for row in rows])
        if not any(counts):
            return {_ROWS: indices}
        return {
            _ROWS: indices,
            _NEW_ROWS: np.repeat(indices, counts),
            _NEW_COLUMNS: np.concatenate(columns),
            _NEW_BLOCKS: np.array([block for blocks in new for block in blocks], np.int32),
        }

    def apply(self, sequences: list[Sequence], tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The sequences' block tables, int32 [N, highest number of blocks]. `tensors`: uploaded `changes`."""
        tables = self.table.apply(tensors, table_width(sequences))
        self.confirm(sequences)
        return tables

    def confirm(self, sequences: list[Sequence]) -> None:
        """Marks all blocks as sent. If it is not called after `changes`, the next step sends them again."""
        for sequence in sequences:
            self._rows[sequence.number].num_sent = len(sequence.block_table)

    def _row(self, sequence: Sequence, batch: list[Sequence]) -> _Row:
        row = self._rows.pop(sequence.number, None)
        if row is None:
            if not self._free:
                self._make_room({other.number for other in batch})
            row = _Row(self._free.pop(), sequence.block_table_version)
        self._rows[sequence.number] = row  # at the end: the most recently used
        return row

    def _make_room(self, kept: set[int]) -> None:
        """Frees the row of the sequence that is unused for longest, or adds rows if it was used lately."""
        number = next((number for number in self._rows if number not in kept), None)
        if number is not None and self._rows[number].last_used < self._batch - _LATELY:
            self._free.append(self._rows.pop(number).index)
            return
        size = self.table.num_rows
        self.table.reserve(2 * size, 0)
        self._free.extend(range(size, 2 * size))


def table_width(sequences: list[Sequence]) -> int:
    """The highest number of blocks of a sequence."""
    return max(len(sequence.block_table) for sequence in sequences)
