"""The vectors of the running sequences, on the device. Knows no concepts and no strengths."""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import torch

from inference.compute.transfer import upload
from inference.scheduling.steering import BlockVectors


class SteeringBank:
    """Rows with one vector per decoder block. Row 0 is zero. Users of equal vectors share a row.

    The tensor is allocated once and never moves, so compiled and captured code that reads it stays valid.
    Nothing tells the bank when a sequence ends: a row is given away when it is needed and unused for longest.
    """

    def __init__(self, num_rows: int, num_blocks: int, hidden_size: int, device: torch.device) -> None:
        """`num_rows`: how many vectors one batch can use. `num_blocks`: the number of decoder blocks."""
        self.num_rows = num_rows
        self.vectors = torch.zeros(num_blocks, num_rows + 1, hidden_size, device=device)
        """[num_blocks, num_rows + 1, hidden_size] float32"""
        self.on_write: Callable[[int, BlockVectors], None] | None = None
        """Is called after each write to a row, with the row and its new content."""
        self._free = list(range(num_rows, 0, -1))
        self._rows: OrderedDict[bytes, int] = OrderedDict()  # by content; the least recently used first
        self._blocks: dict[int, tuple[int, ...]] = {}  # by row: the blocks with a vector

    def place(self, wanted: Iterable[BlockVectors]) -> dict[bytes, int]:
        """The row of each content, by its key. The rows stay the same until the next call.

        Raises ValueError if they are more than `num_rows`.
        """
        distinct = {vectors.key: vectors for vectors in wanted}
        if len(distinct) > self.num_rows:
            raise ValueError(f"{len(distinct)} vectors do not fit into a bank of {self.num_rows} rows")
        for key in distinct:
            if key in self._rows:
                self._rows.move_to_end(key)
        for key, vectors in distinct.items():
            if key not in self._rows:
                self._add(key, vectors)
        return {key: self._rows[key] for key in distinct}

    def _add(self, key: bytes, vectors: BlockVectors) -> None:
        row = self._free.pop() if self._free else self._rows.popitem(last=False)[1]
        try:
            self.write(row, vectors)
            if self.on_write is not None:
                self.on_write(row, vectors)
        except BaseException:
            self._free.append(row)
            raise
        self._rows[key] = row

    def write(self, row: int, vectors: BlockVectors) -> None:
        """Replaces the content of a row. For banks that repeat what another bank's `place` has done."""
        # The upload does not wait for the step in flight. The copy comes after it in the stream.
        stale = tuple(block for block in self._blocks.get(row, ()) if block not in vectors.blocks)
        self._blocks[row] = (*stale, *vectors.blocks)  # should the copy fail
        content = {"blocks": np.array(vectors.blocks + stale), "values": vectors.vectors}
        tensors = upload(content, self.vectors.device)
        values = torch.nn.functional.pad(tensors["values"], (0, 0, 0, len(stale)))
        self.vectors[:, row].index_copy_(0, tensors["blocks"], values)
        self._blocks[row] = vectors.blocks
