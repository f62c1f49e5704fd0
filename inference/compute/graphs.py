"""Decode steps, captured once for some batch sizes and then replayed. A replay costs the host one launch,
however many operations the model has. Knows the layout of a captured batch, but not how capturing works.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from inference.compute.batch import AttentionMetadata, Batch
from inference.compute.steering import SteeringBatch

Act = Callable[[], object]
"""Computes a step. Reads and writes the same memory each time, and never waits for the device."""
Replay = Callable[[], None]
Capture = Callable[[Iterable[Act]], Iterator[Replay]]
"""Runs and captures each function, and yields its replay. Replays run one at a time, in any order."""
Forward = Callable[[Batch, torch.Tensor], object]
"""Computes the logits [S, vocab_size] of a batch, and writes them to the tensor."""

_SIZE_MULTIPLE = 8  # larger batch sizes are rounded up to a multiple of this


class Graphs:
    """The captured steps. A replay serves any sequences, steered or not, up to its batch size."""

    def __init__(
        self,
        forward: Forward,
        capture: Capture,
        *,
        max_sequences: int,
        max_blocks: int,
        vocab_size: int,
        padding_slot: int,
        device: torch.device,
    ) -> None:
        """Captures `forward` for each batch size.

        `max_blocks`: KV cache blocks per sequence. `padding_slot`: a cache slot that belongs to no sequence.
        """
        self.sizes = batch_sizes(max_sequences)
        self._inputs = _Inputs(max_sequences, max_blocks, padding_slot, device)
        # One buffer for all sizes. Otherwise each captured step would keep its own logits alive.
        self._logits = torch.empty(max_sequences, vocab_size, dtype=torch.float32, device=device)
        # The largest first: the others reuse its memory.
        acts = [
            partial(forward, self._inputs.batch(size), self._logits[:size]) for size in reversed(self.sizes)
        ]
        self._replays = dict(zip(reversed(self.sizes), capture(acts), strict=True))

    def can_run(self, batch: Batch) -> bool:
        """Whether a captured step can compute the batch."""
        return (
            batch.attention_metadata is not None
            and len(batch.sampling) == len(batch.token_ids) <= self.sizes[-1]
            and not batch.probes
            and batch.readings is None
            and (batch.steering is None or batch.steering.projections is None)
        )

    def run(self, batch: Batch) -> torch.Tensor:
        """The batch's logits [S, vocab_size], valid until the next call."""
        count = len(batch.token_ids)
        size = self.sizes[bisect_left(self.sizes, count)]
        self._inputs.fill(batch, size)
        self._replays[size]()
        return self._logits[:count]


class _Inputs:
    """The input tensors of captured steps. Padding rows write to the spare slot."""

    def __init__(self, max_sequences: int, max_blocks: int, padding_slot: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self._padding_slot = padding_slot
        self._indices = torch.arange(max_sequences + 1, device=device)
        self._token_ids = zeros(max_sequences)
        self._positions = zeros(max_sequences)
        self._slot_mapping = zeros(max_sequences).fill_(padding_slot)
        self._block_tables = zeros(max_sequences, max_blocks, dtype=torch.int32)
        self._rows = zeros(max_sequences)

    def batch(self, size: int) -> Batch:
        """A batch over the first `size` rows."""
        return Batch(
            token_ids=self._token_ids[:size],
            positions=self._positions[:size],
            slot_mapping=self._slot_mapping[:size],
            attention_metadata=AttentionMetadata(
                self._block_tables[:size], self._indices[: size + 1], num_decodes=size
            ),
            groups=[],
            logit_tokens=self._indices[:size],
            sampling=[],
            probes=[],
            steering=SteeringBatch(self._rows[:size], blocks=None),
        )

    def fill(self, batch: Batch, size: int) -> None:
        assert batch.attention_metadata is not None  # noqa: S101 - for the type checker
        count, width = batch.attention_metadata.block_tables.shape
        self._token_ids[:count].copy_(batch.token_ids)
        self._positions[:count].copy_(batch.positions)
        self._slot_mapping[:count].copy_(batch.slot_mapping)
        self._block_tables[:count, :width].copy_(batch.attention_metadata.block_tables)
        if count < size:
            self._positions[count:size].zero_()
            self._slot_mapping[count:size].fill_(self._padding_slot)
        if batch.steering is None:
            self._rows[:size].zero_()
        else:
            self._rows[:count].copy_(batch.steering.rows)
            self._rows[count:size].zero_()


def batch_sizes(most: int) -> list[int]:
    """Batch sizes to capture, up to `most`. Not every size: in a large batch, padding rows cost little."""
    return [size for size in (1, 2, 4) if size < most] + [*range(_SIZE_MULTIPLE, most, _SIZE_MULTIPLE), most]
