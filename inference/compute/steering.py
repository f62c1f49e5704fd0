"""What steering and readings do to each token of a batch, as tensors. Knows no concepts."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from inference.compute.transfer import Arrays, AsyncCopy, upload
from inference.scheduling.sequence import Sequence
from inference.scheduling.steering import BlockVectors, Reader

Place = Callable[[Iterable[BlockVectors]], dict[bytes, int]]
"""Gives vectors their rows in the bank, by their key. Row 0 of the bank is zero."""


def place_nothing(wanted: Iterable[BlockVectors]) -> dict[bytes, int]:  # noqa: ARG001
    """The `Place` of a model without a bank: its sequences are neither steered nor read."""
    return {}


@dataclass(frozen=True)
class ProjectionBatch:
    """Each of M tokens gets the sum of K terms (read h) * write added to its activations h."""

    tokens: torch.Tensor  # [M] indices of tokens
    reads: torch.Tensor  # [M, K] rows of the bank
    writes: torch.Tensor  # [M, K] rows of the bank


@dataclass(frozen=True)
class SteeringBatch:
    """What steering changes in each token's activations. Tokens without steering use row 0, which is zero."""

    rows: torch.Tensor  # [T] rows of the bank to add
    blocks: frozenset[int] | None
    """The decoder blocks whose output changes. None: perhaps all of them."""
    projections: ProjectionBatch | None = None
    arrays: Arrays = field(default_factory=dict)
    """What the tensors were made from, on the host. Empty for a captured step."""


def upload_steering(arrays: Arrays, blocks: frozenset[int], device: torch.device) -> SteeringBatch:
    """Makes again, in another process, what SteeringBatch.arrays describes."""
    return _steering_batch(arrays, blocks, upload(arrays, device))


def _steering_batch(
    arrays: Arrays, blocks: frozenset[int], tensors: dict[str, torch.Tensor]
) -> SteeringBatch:
    projections = None
    if "projected" in tensors:
        projections = ProjectionBatch(tensors["projected"], tensors["reads"], tensors["writes"])
    return SteeringBatch(tensors["rows"], blocks, projections, arrays)


@dataclass(frozen=True)
class ReadingSite:
    """The tokens to read at the output of one decoder block."""

    tokens: torch.Tensor  # [R] indices of tokens
    rows: torch.Tensor  # [R] rows of the bank
    targets: list[tuple[Reader, int]]
    """For each of the R readings its reader and the token's position."""


@dataclass(frozen=True)
class ReadingBatch:
    """The readings of a batch, and their results, which a forward pass fills in."""

    sites: dict[int, ReadingSite]
    """By decoder block."""
    projections: dict[int, torch.Tensor] = field(default_factory=dict)  # [R] float32 by decoder block


class ReadingResults:
    """The readings of a batch on their way to the host."""

    def __init__(self, batch: ReadingBatch) -> None:
        self._sites = [batch.sites[block] for block in batch.projections]
        self._copy = AsyncCopy(torch.cat(list(batch.projections.values())))

    def store(self) -> None:
        """Waits for the step, and gives the readers their values."""
        [projections] = self._copy.read()
        targets = (target for site in self._sites for target in site.targets)
        for (reader, position), projection in zip(targets, projections.tolist(), strict=True):
            reader.store(position, projection)


def needed_vectors(sequence: Sequence) -> Iterator[BlockVectors]:
    """The vectors that a step of the sequence needs in the bank."""
    if sequence.active_steering is not None:
        yield from sequence.active_steering.vectors
    for reader in sequence.pending_readers:
        yield reader.direction


def build_steering(
    ordered: list[Sequence], place: Place, device: torch.device
) -> tuple[SteeringBatch | None, ReadingBatch | None]:
    """The steering and the readings of the sequences `ordered` of a batch. None if no token has any."""
    rows = place(vectors for sequence in ordered for vectors in needed_vectors(sequence))
    if not rows:
        return None, None
    steered = _Steered(ordered, rows)
    sites = _read_tokens(ordered, rows)
    arrays = {**steered.arrays, **_site_arrays(sites)}
    tensors = upload(arrays, device) if arrays else {}
    readings = {
        block: ReadingSite(tensors[f"read_tokens_{block}"], tensors[f"read_rows_{block}"], site.targets)
        for block, site in sites.items()
    }
    return steered.batch(tensors), ReadingBatch(readings) if readings else None


class _Steered:
    """The steered tokens of a batch, on the host."""

    def __init__(self, ordered: list[Sequence], rows: dict[bytes, int]) -> None:
        self._rows = np.zeros(sum(sequence.num_scheduled_tokens for sequence in ordered), np.int64)
        self._tokens: list[int] = []
        self._reads: list[list[int]] = []
        self._writes: list[list[int]] = []
        blocks: set[int] = set()
        start = 0
        for sequence in ordered:
            first = sequence.num_computed_tokens
            if (steering := sequence.active_steering) is not None:
                covered = steering.covered(first, first + sequence.num_scheduled_tokens)
                tokens = range(covered.start - first + start, covered.stop - first + start)
                if tokens:
                    blocks |= steering.blocks
                    if steering.added is not None:
                        self._rows[tokens.start : tokens.stop] = rows[steering.added.key]
                    if steering.projections:
                        self._tokens += tokens
                        self._reads += [[rows[pair.read.key] for pair in steering.projections]] * len(tokens)
                        self._writes += [[rows[pair.write.key] for pair in steering.projections]] * len(
                            tokens
                        )
            start += sequence.num_scheduled_tokens
        self._blocks = frozenset(blocks)

    @cached_property
    def arrays(self) -> Arrays:
        if not self._blocks:
            return {}
        if not self._tokens:
            return {"rows": self._rows}
        return {
            "rows": self._rows,
            "projected": np.array(self._tokens),
            "reads": _pad(self._reads),
            "writes": _pad(self._writes),
        }

    def batch(self, tensors: dict[str, torch.Tensor]) -> SteeringBatch | None:
        return _steering_batch(self.arrays, self._blocks, tensors) if self._blocks else None


@dataclass
class _Site:
    tokens: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    targets: list[tuple[Reader, int]] = field(default_factory=list)


def _read_tokens(ordered: list[Sequence], rows: dict[bytes, int]) -> dict[int, _Site]:
    sites: dict[int, _Site] = {}
    start = 0
    for sequence in ordered:
        first = sequence.num_computed_tokens
        for reader in sequence.pending_readers:
            covered = reader.covered(first, first + sequence.num_scheduled_tokens)
            if covered:
                site = sites.setdefault(reader.block, _Site())
                site.tokens += range(covered.start - first + start, covered.stop - first + start)
                site.rows += [rows[reader.direction.key]] * len(covered)
                site.targets += [(reader, position) for position in covered]
        start += sequence.num_scheduled_tokens
    return sites


def _site_arrays(sites: dict[int, _Site]) -> Arrays:
    arrays: dict[str, np.ndarray] = {}
    for block, site in sites.items():
        arrays[f"read_tokens_{block}"] = np.array(site.tokens)
        arrays[f"read_rows_{block}"] = np.array(site.rows)
    return arrays


def _pad(rows: list[list[int]]) -> np.ndarray:
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
