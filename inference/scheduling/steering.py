"""What is done to a sequence's activations, and what is read from them. Knows no tensors and no concepts."""

import hashlib
import struct
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from inference.scheduling.arrays import Array32


@dataclass(frozen=True, eq=False)
class BlockVectors:
    """One vector for the output of each of some decoder blocks."""

    blocks: tuple[int, ...]
    """Indices of the decoder blocks, ascending."""
    vectors: Array32  # [len(blocks), hidden_size]

    @cached_property
    def key(self) -> bytes:
        """Equal for equal content."""
        content = hashlib.sha256(struct.pack(f"<{len(self.blocks)}q", *self.blocks))
        content.update(self.vectors.tobytes())
        return content.digest()


@dataclass(frozen=True, eq=False)
class Projection:
    """Adds (read h) * write to the output h of each decoder block. Both have vectors for the same blocks."""

    read: BlockVectors
    write: BlockVectors


@dataclass(frozen=True, eq=False)
class Steering:
    """Changes the activations at the positions from `first` to before `end`.

    The changes of all projections are computed from the output of the block before any change.
    """

    added: BlockVectors | None = None
    projections: tuple[Projection, ...] = ()
    first: int = 1
    """Never 0: the activations at the first position are tens of times larger than all others and carry no
    meaning (Sun et al., arXiv:2402.17762)."""
    end: int | None = None
    """None: to the end of the sequence."""

    @cached_property
    def vectors(self) -> tuple[BlockVectors, ...]:
        """All vectors that are needed on the device."""
        added = () if self.added is None else (self.added,)
        return added + tuple(part for pair in self.projections for part in (pair.read, pair.write))

    @cached_property
    def blocks(self) -> frozenset[int]:
        """The decoder blocks whose output changes."""
        return frozenset(block for part in self.vectors for block in part.blocks)

    def covered(self, first: int, end: int) -> range:
        """The steered positions among those from `first` to before `end`."""
        return range(max(first, self.first), end if self.end is None else min(end, self.end))

    def digest(self, first: int, end: int) -> bytes:
        """Identifies what is done at the positions from `first` to before `end`. Empty if it is nothing."""
        covered = self.covered(first, end)
        if not covered:
            return b""
        return self._content + struct.pack("<2q", covered.start - first, covered.stop - first)

    @cached_property
    def _content(self) -> bytes:
        content = hashlib.sha256(b"" if self.added is None else self.added.key)
        for projection in self.projections:
            content.update(projection.read.key + projection.write.key)
        return content.digest()


@dataclass(eq=False)
class Reader:
    """Reads how strongly a direction is present in the output of one decoder block, at some positions."""

    direction: BlockVectors  # [1, hidden_size]
    zero: float
    """The projection on the direction that reads as 0."""
    one: float
    """The projection that reads as 1."""
    first: int = 1
    end: int | None = None
    """Reads the positions from `first` to before `end`. None: to the end of the sequence."""
    _values: dict[int, float] = field(default_factory=dict)

    @property
    def block(self) -> int:
        return self.direction.blocks[0]

    def covered(self, first: int, end: int) -> range:
        """The positions to read among those from `first` to before `end`."""
        return range(max(first, self.first), end if self.end is None else min(end, self.end))

    def store(self, position: int, projection: float) -> None:
        self._values[position] = (projection - self.zero) / (self.one - self.zero)

    def value(self, position: int) -> float:
        """The reading at a position that was computed."""
        return self._values[position]

    @property
    def values(self) -> list[float]:
        """The readings at all positions that were computed, in their order."""
        return [value for _, value in sorted(self._values.items())]


@dataclass(eq=False)
class Condition:
    """Decides by a reading over the prompt whether the answer is steered. Shared by a request's choices."""

    reader: Reader
    """Reads the prompt."""
    above: float | None
    below: float | None
    met: bool | None = None
    """None: not decided yet."""

    def decide(self) -> None:
        """Compares the mean reading with the limits. The prompt must be computed."""
        mean = float(np.mean(self.reader.values)) if self.reader.values else float("nan")
        self.met = (self.above is None or mean > self.above) and (self.below is None or mean < self.below)
