"""Decode steps, captured once for some batch sizes and then replayed. A replay costs the host one launch,
however many operations the model has. Knows the layout of a captured batch, but not how capturing works.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch

from inference.compute.batch import AttentionMetadata, Batch, SteeringBatch

Replay = Callable[[], None]
Capture = Callable[[Callable[[], torch.Tensor]], tuple[Replay, torch.Tensor]]
"""Runs a function and captures it. Returns a replay of the function, and the tensor that holds each result.

The function must read and write the same memory each time, and must never wait for the device.
"""

_SIZE_MULTIPLE = 8  # larger batch sizes are rounded up to a multiple of this


class Graphs:
    """The captured steps. A replay serves any sequences, steered or not, up to its batch size."""

    def __init__(
        self,
        forward: Callable[[Batch], torch.Tensor],
        capture: Capture,
        *,
        max_sequences: int,
        max_blocks: int,
        padding_slot: int,
        device: torch.device,
    ) -> None:
        """Captures `forward` for each batch size.

        `max_blocks`: KV cache blocks per sequence. `padding_slot`: a cache slot that belongs to no sequence.
        """
        self._sizes = _sizes(max_sequences)
        self._inputs = _Inputs(self._sizes[-1], max_blocks, padding_slot, device)
        self._replays: dict[int, tuple[Replay, torch.Tensor]] = {}
        for size in reversed(self._sizes):  # the largest first: the others reuse its memory
            self._replays[size] = capture(partial(forward, self._inputs.batch(size)))

    def can_run(self, batch: Batch) -> bool:
        """Whether a captured step can compute the batch."""
        return (
            batch.attention_metadata is not None
            and len(batch.sampling) == len(batch.token_ids) <= self._sizes[-1]
            and not batch.probes
        )

    def run(self, batch: Batch) -> torch.Tensor:
        """The batch's logits [S, vocab_size], valid until the next call."""
        count = len(batch.token_ids)
        size = self._sizes[bisect_left(self._sizes, count)]
        self._inputs.fill(batch, size)
        replay, logits = self._replays[size]
        replay()
        return logits[:count]


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
        self._scales = zeros(max_sequences, 1, dtype=torch.float32)

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
            steering=SteeringBatch(self._rows[:size], self._scales[:size]),
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
            self._scales[:count].copy_(batch.steering.scales)


def _sizes(most: int) -> list[int]:
    """Batch sizes to capture, up to `most`. Not every size: in a large batch, padding rows cost little."""
    return [size for size in (1, 2, 4) if size < most] + [*range(_SIZE_MULTIPLE, most, _SIZE_MULTIPLE), most]
