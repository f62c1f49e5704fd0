"""The tensors of one step: the scheduled tokens of all sequences, one sequence after the other.

Knows the layout of tokens and slots. Knows nothing about the model or sampling.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import torch

from inference.compute.block_tables import BlockTables, DeviceTable, table_width
from inference.compute.host_batch import HostBatch, HostGroup
from inference.compute.steering import Place, ReadingBatch, SteeringBatch, build_steering, place_nothing
from inference.compute.transfer import upload
from inference.scheduling.probe import ProbeSpan, locate
from inference.scheduling.sequence import Sequence

_MAX_GATHERED_TOKENS = 2**17  # limit for the context tokens that one SDPA call gathers, padding included


@dataclass(frozen=True)
class AttentionGroup:
    """Sequences of the batch that share one SDPA call, padded to the longest context among them.

    Either B sequences with one query token each (Q = 1), or one sequence (B = 1) with Q query tokens.
    """

    tokens: slice
    """The group's B * Q query tokens, as a slice of the batch's tokens."""
    slots: torch.Tensor  # [B, L] slots of each context, padded with the cache's padding slot
    query_positions: torch.Tensor  # [B, Q]
    _masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, sliding_window: int | None, repeats: int) -> torch.Tensor:
        """[B, 1, repeats * Q, L], True where a query sees a key.

        A query sees the keys at its own position and before it, inside the window. The mask repeats the rows
        of the Q queries `repeats` times. It is built once for all layers with the same arguments.
        """
        key = sliding_window, repeats
        if key not in self._masks:
            distance = self.query_positions[:, :, None] - torch.arange(
                self.slots.shape[1], device=self.slots.device
            )
            visible = distance >= 0
            if sliding_window is not None:
                visible &= distance < sliding_window
            self._masks[key] = visible[:, None].repeat(1, 1, repeats, 1)
        return self._masks[key]


@dataclass(frozen=True)
class AttentionMetadata:
    """Locates the contexts of a batch's N sequences, for attention that reads the KV cache in place."""

    block_tables: torch.Tensor  # int32 [N, highest number of blocks of a sequence]
    cu_seqlens: torch.Tensor  # [N + 1] index of each sequence's first token; the last entry is T
    num_decodes: int
    """Number of sequences with one token in this step. They come first in the batch."""


@dataclass(frozen=True)
class Batch:
    """T tokens of several sequences. S of these sequences sample a token; P tokens are scored for probes."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slot_mapping: torch.Tensor  # [T] slots that the keys and values are written to
    attention_metadata: AttentionMetadata | None
    """None if attention does not read the KV cache in place."""
    groups: list[AttentionGroup]
    """Empty if attention reads the KV cache in place."""
    logit_tokens: torch.Tensor  # [S + P] indices of tokens: first those to sample from, then those to score
    sampling: list[Sequence]
    """The S sequences that sample, in the order of `logit_tokens`."""
    probes: list[ProbeSpan]
    steering: SteeringBatch | None
    """None if no token of the batch is steered."""
    readings: ReadingBatch | None = None
    """None if no token of the batch is read."""
    host: HostBatch | None = None
    """What the tensors were made from. None for a captured step, and for a step after `follow`."""


def assemble(
    host: HostBatch,
    device: torch.device,
    table: DeviceTable | None,
    steering: SteeringBatch | None,
    readings: ReadingBatch | None,
    sampling: list[Sequence],
    probes: list[ProbeSpan],
) -> Batch:
    """Uploads a batch. `table`: the block tables, if attention reads the KV cache in place."""
    tensors = upload(host.arrays, device)
    metadata = None
    if table is not None:
        tables = table.apply(tensors, host.table_width)
        metadata = AttentionMetadata(tables, tensors["cu_seqlens"], host.num_decodes)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    return Batch(
        token_ids=tensors["token_ids"],
        positions=tensors["positions"],
        slot_mapping=tensors["slot_mapping"],
        attention_metadata=metadata,
        groups=[
            AttentionGroup(slice(group.first, group.end), tensor(group.slots), tensor(group.query_positions))
            for group in host.groups
        ],
        logit_tokens=tensors["logit_tokens"],
        sampling=sampling,
        probes=probes,
        steering=steering,
        readings=readings,
        host=host,
    )


class BatchBuilder:
    def __init__(
        self,
        block_size: int,
        padding_slot: int,
        device: torch.device,
        place: Place = place_nothing,
        *,
        in_place: bool,
    ) -> None:
        """`place`: gives steering vectors their rows in the bank. `in_place`: attention reads the contexts
        from the KV cache blocks, without a gather."""
        self.block_size = block_size
        self.padding_slot = padding_slot
        self.device = device
        self._place = place
        self._block_tables = BlockTables(device) if in_place else None
        self.on_build: Callable[[HostBatch], None] | None = None
        """Is called with each batch that was built: it may have changed the block tables on the device."""

    def build(self, scheduled: list[Sequence]) -> Batch:
        # Decodes come first. Those with similar context lengths are neighbours, and share an SDPA call.
        ordered = sorted(scheduled, key=_group_key)
        counts = [sequence.num_scheduled_tokens for sequence in ordered]
        positions = np.concatenate([_positions(sequence) for sequence in ordered])
        ends = np.cumsum(counts)
        samples = [sequence.samples_next for sequence in ordered]
        probes = _probe_spans(ordered, ends)
        logit_tokens = [ends[samples] - 1, *(np.array(span.scored_tokens, dtype=np.int64) for span in probes)]
        arrays = {
            "token_ids": np.concatenate([_scheduled_token_ids(sequence) for sequence in ordered]),
            "positions": positions,
            "slot_mapping": np.concatenate([self._slot_mapping(sequence) for sequence in ordered]),
            "logit_tokens": np.concatenate(logit_tokens),
            "cu_seqlens": np.concatenate([[0], ends]),
        }
        table = None
        if self._block_tables is not None:
            table = self._block_tables.table
            arrays |= self._block_tables.changes(ordered)
            host = HostBatch(arrays, counts.count(1), table.num_rows, table_width(ordered))
        else:
            host = HostBatch(arrays, counts.count(1), groups=tuple(self._groups(ordered, positions)))
        steering, readings = build_steering(ordered, self._place, self.device)
        batch = assemble(
            host,
            self.device,
            table,
            steering,
            readings,
            [sequence for sequence, keep in zip(ordered, samples, strict=True) if keep],
            probes,
        )
        if self._block_tables is not None:
            self._block_tables.confirm(ordered)
        if self.on_build is not None:
            self.on_build(host)
        return batch

    def follow(self, batch: Batch, token_ids: torch.Tensor) -> Batch:
        """The decode step after `batch`. `token_ids` [T]: the token that each sequence has sampled.

        `batch` has one token per sequence, and its attention reads the KV cache in place. Does not need the
        values of `token_ids` on the host.
        """
        assert self._block_tables is not None  # noqa: S101 - for the type checker
        assert batch.attention_metadata is not None  # noqa: S101
        sequences = batch.sampling
        slots = np.array([self._slot(sequence, sequence.num_tokens) for sequence in sequences])
        changes = self._block_tables.changes(sequences)
        tensors = upload({"slot_mapping": slots, **changes}, self.device)
        block_tables = self._block_tables.apply(sequences, tensors)
        return replace(
            batch,
            token_ids=token_ids,
            positions=batch.positions + 1,
            slot_mapping=tensors["slot_mapping"],
            attention_metadata=replace(batch.attention_metadata, block_tables=block_tables),
            host=None,
        )

    def _groups(self, ordered: list[Sequence], positions: np.ndarray) -> Iterator[HostGroup]:
        first = 0
        for indices in _split(ordered):
            members = [ordered[i] for i in indices]
            end = first + sum(member.num_scheduled_tokens for member in members)
            yield HostGroup(
                first,
                end,
                slots=self._pad([self._context_slots(member) for member in members]),
                query_positions=positions[first:end].reshape(len(members), -1),
            )
            first = end

    def _slot_mapping(self, sequence: Sequence) -> np.ndarray:
        """The slots of the scheduled tokens."""
        first = sequence.num_computed_tokens
        if sequence.num_scheduled_tokens == 1:
            return np.array([self._slot(sequence, first)])
        return self._context_slots(sequence)[first:]

    def _slot(self, sequence: Sequence, position: int) -> int:
        block, offset = divmod(position, self.block_size)
        return sequence.block_table[block] * self.block_size + offset

    def _context_slots(self, sequence: Sequence) -> np.ndarray:
        """The slots of all tokens up to the last scheduled one."""
        length = sequence.num_computed_tokens + sequence.num_scheduled_tokens
        blocks = np.asarray(sequence.block_table, dtype=np.int64)
        slots = blocks[:, None] * self.block_size + np.arange(self.block_size)
        return slots.reshape(-1)[:length]

    def _pad(self, rows: list[np.ndarray]) -> np.ndarray:
        padded = np.full((len(rows), max(map(len, rows))), self.padding_slot, dtype=np.int64)
        for row, values in zip(padded, rows, strict=True):
            row[: len(values)] = values
        return padded


def _split(ordered: list[Sequence]) -> Iterator[list[int]]:
    """Indices of the sequences of each SDPA call. Only a call with one sequence may exceed the limit."""
    for (_, width), members in groupby(range(len(ordered)), key=lambda i: _group_key(ordered[i])):
        indices = list(members)
        size = max(1, _MAX_GATHERED_TOKENS >> width)
        yield from (indices[i : i + size] for i in range(0, len(indices), size))


def _group_key(sequence: Sequence) -> tuple[int, int]:
    """Equal for decodes whose context lengths have the same number of bits; different for all others."""
    if sequence.num_scheduled_tokens == 1:
        return 0, (sequence.num_computed_tokens + 1).bit_length()
    return 1 + sequence.number, 0


def _probe_spans(ordered: list[Sequence], ends: np.ndarray) -> list[ProbeSpan]:
    return [
        locate(sequence.probe, sequence.num_computed_tokens, range(end - sequence.num_scheduled_tokens, end))
        for sequence, end in zip(ordered, ends.tolist(), strict=True)
        if sequence.probe is not None
    ]


def _positions(sequence: Sequence) -> np.ndarray:
    first = sequence.num_computed_tokens
    return np.arange(first, first + sequence.num_scheduled_tokens, dtype=np.int64)


def _scheduled_token_ids(sequence: Sequence) -> np.ndarray:
    first = sequence.num_computed_tokens
    ids = sequence.token_ids[first : first + sequence.num_scheduled_tokens]
    return np.array(ids, dtype=np.int64)
