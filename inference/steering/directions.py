"""A concept's direction in one model, and what is measured once per model. Knows no files."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from inference.interface.concepts import GivenVectors
from inference.scheduling.arrays import Array32

_LEAST_RANGE = 1e-6
"""Of readings, relative to the projections. In a smaller range they would be noise."""


class Calibration(msgspec.Struct, frozen=True):
    """Measurements of a model's activations that steering needs."""

    norms: tuple[float, ...]
    """Per decoder block: the mean norm of its output, without the first position."""
    cap: float
    """The largest norm that several concepts together may add to a decoder block's output, relative to that
    mean norm."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A concept's direction in one model, and how far the strengths move along it."""

    blocks: tuple[int, ...]
    """Indices of the decoder blocks whose output is steered, ascending."""
    units: Array32  # [len(blocks), hidden_size], unit length
    lengths: tuple[float, ...]
    """Per block: the norm of what strength 1 adds, or would add if positive strengths steered the block."""
    down_scale: float
    """Strength -1 subtracts `lengths` times this number, at the blocks that negative strengths steer."""
    max_strength: float
    max_down_strength: float
    """The largest strengths that are used, both positive."""
    reading_block: int
    """The one of `blocks` that is read."""
    reading_range: tuple[float, float]
    """The projections on the unit direction that read as 0 and 1."""
    up_blocks: tuple[int, ...] | None = None
    """Those of `blocks` that positive strengths steer. None: all."""
    down_blocks: tuple[int, ...] | None = None
    """The same for negative strengths."""

    def __post_init__(self) -> None:
        """Raises ValueError for values that do not fit together, or that would make outputs not finite."""
        numbers = (*self.lengths, self.down_scale, self.max_strength, self.max_down_strength)
        if self.units.ndim != 2 or self.units.dtype != np.float32:
            raise ValueError("the direction's vectors are not a matrix of float32 numbers")
        if not (np.isfinite(self.units).all() and all(map(math.isfinite, (*numbers, *self.reading_range)))):
            raise ValueError("the direction is not finite")
        if not len(self.blocks) == len(self.units) == len(self.lengths) > 0:
            raise ValueError("the direction has not one vector and one length for each block")
        if list(self.blocks) != sorted(set(self.blocks)) or self.reading_block not in self.blocks:
            raise ValueError(
                "the direction's blocks are not in order, or the block to read is not among them"
            )
        if not all(
            set(some) <= set(self.blocks) and some for some in (self.steered(1.0), self.steered(-1.0))
        ):
            raise ValueError("a sign of the direction has no blocks, or others")
        zero, one = self.reading_range
        if min(numbers) < 0 or abs(one - zero) <= _LEAST_RANGE * (abs(zero) + abs(one)):
            raise ValueError("the direction has a negative length or an empty range of readings")

    def fits(self, num_layers: int, hidden_size: int) -> bool:
        """Whether a model of this shape has all the direction's blocks."""
        return self.blocks[0] >= 0 and self.blocks[-1] < num_layers and self.units.shape[1] == hidden_size

    def clip(self, strength: float) -> float:
        """The strength that is used instead."""
        return min(max(strength, -self.max_down_strength), self.max_strength)

    def steered(self, strength: float) -> tuple[int, ...]:
        """The blocks that strengths of this sign steer."""
        some = self.up_blocks if strength >= 0 else self.down_blocks
        return self.blocks if some is None else some

    def components(self, strength: float) -> Array32:
        """[len(blocks), 1]: what the strength adds along each block's unit direction."""
        scale = strength if strength >= 0 else strength * self.down_scale
        lengths = np.where(np.isin(self.blocks, self.steered(strength)), self.lengths, 0.0)
        return lengths.astype(np.float32)[:, None] * np.float32(scale)

    def vectors(self, strength: float) -> Array32:
        """[len(blocks), hidden_size]: what the strength adds to each block's output."""
        return self.units * self.components(strength)

    @property
    def reading_unit(self) -> Array32:
        """[1, hidden_size]: the direction that is read."""
        return self.units[[self.blocks.index(self.reading_block)]]


def to_given_vectors(direction: Direction) -> GivenVectors:
    """The direction as data that can leave the process."""
    return GivenVectors(
        blocks=direction.blocks,
        values=direction.units.astype("<f4").tobytes(),
        lengths=direction.lengths,
        down_scale=direction.down_scale,
        max_strength=direction.max_strength,
        max_down_strength=direction.max_down_strength,
        reading_block=direction.reading_block,
        reading_range=direction.reading_range,
        up_blocks=direction.up_blocks,
        down_blocks=direction.down_blocks,
    )


def unit_vectors(vectors: Array32) -> Array32:
    """The rows [N, hidden_size] with unit length. A zero row stays zero."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    units: Array32 = (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    return units


def relative_dose(direction: Direction, norms: Iterable[float], strength: float = 1.0) -> float:
    """The largest norm that the strength adds to a block's output, relative to that output's mean norm."""
    mean_norms = np.array(tuple(norms))[list(direction.blocks)]
    return float((np.abs(direction.components(strength)[:, 0]) / mean_norms).max())
