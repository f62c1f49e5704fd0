"""The content of a batch on the host, before it is uploaded. Knows no sequences."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.compute.block_tables import TABLE_CHANGES
from inference.compute.transfer import Arrays

Integers = NDArray[np.int64]


class HostGroup(NamedTuple):
    """The content of an AttentionGroup."""

    first: int
    """Index of the group's first token in the batch."""
    end: int
    """Index after its last token."""
    slots: Integers  # [B, L]
    query_positions: Integers  # [B, Q]


class HostBatch(NamedTuple):
    """The content of a Batch, all but its steering. Other processes can make the same tensors from it."""

    arrays: Arrays
    """By name: `token_ids`, `positions`, `slot_mapping`, `logit_tokens`, `cu_seqlens`, and the changes of the
    block tables if attention reads the KV cache in place."""
    num_decodes: int
    """Number of sequences with one token in this step."""
    table_rows: int = 0
    """Rows of the block tables on the device. 0: attention does not read the KV cache in place."""
    table_width: int = 0
    """The highest number of blocks of a sequence."""
    groups: tuple[HostGroup, ...] = ()
    """Empty if attention reads the KV cache in place."""

    @property
    def table_changes(self) -> Arrays:
        """The part of `arrays` that changes the block tables."""
        return {name: self.arrays[name] for name in TABLE_CHANGES if name in self.arrays}
