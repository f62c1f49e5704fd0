"""The direction of vectors that were made elsewhere. Respects their own scale."""

from dataclasses import replace

import numpy as np

from inference.interface.concepts import GivenVectors
from inference.scheduling.arrays import Array32
from inference.steering.directions import Direction, unit_vectors
from inference.steering.measurements import Examples, reading_block

_LARGEST = float(np.finfo(np.float32).max)


def given_direction(vectors: GivenVectors, examples: Examples) -> Direction:
    """The direction that adds exactly the given vectors at strength 1.

    Its readings are those that are given, or else made from the pairs, or else from the neutral texts: 0 is
    their mean, and 1 is 0 plus what strength 1 adds. Raises ValueError if the vectors do not fit the model.
    """
    num_layers, hidden_size = len(examples.norms), examples.hidden_size
    values = _decode(vectors, hidden_size)
    lengths = np.linalg.norm(values.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all():
        raise ValueError("the vectors are not finite")
    if not lengths.all():
        raise ValueError("a vector is zero")
    block = vectors.reading_block if vectors.reading_block is not None else reading_block(vectors.blocks)
    direction = Direction(
        blocks=vectors.blocks,
        units=unit_vectors(values) if vectors.lengths is None else values,
        lengths=tuple(lengths.tolist()) if vectors.lengths is None else vectors.lengths,
        down_scale=vectors.down_scale,
        max_strength=vectors.max_strength,
        max_down_strength=vectors.max_down_strength,
        reading_block=block,
        reading_range=vectors.reading_range or (0.0, 1.0),
        up_blocks=vectors.up_blocks,
        down_blocks=vectors.down_blocks,
    )
    if not direction.fits(num_layers, hidden_size):
        raise ValueError(f"the vectors do not fit the model, which has decoder blocks 0 to {num_layers - 1}")
    strongest = max(vectors.max_strength, vectors.max_down_strength * vectors.down_scale)
    if max(direction.lengths) * strongest > _LARGEST:
        raise ValueError("the vectors are too large")
    if vectors.reading_range is not None:
        return direction
    return replace(direction, reading_range=_reading_range(direction, examples))


def _reading_range(direction: Direction, examples: Examples) -> tuple[float, float]:
    [unit] = direction.reading_unit
    if examples.factory.num_pairs:
        zero, one = examples.reading_range(direction.reading_block, unit)
        if zero != one:
            return zero, one
    zero = examples.neutral_projection(direction.reading_block, unit)
    return zero, zero + direction.lengths[direction.blocks.index(direction.reading_block)]


def _decode(vectors: GivenVectors, hidden_size: int) -> Array32:
    values: Array32 = np.frombuffer(vectors.values, "<f4").astype(np.float32)
    if not vectors.blocks or len(values) != len(vectors.blocks) * hidden_size:
        raise ValueError(f"there must be one vector of {hidden_size} numbers for each decoder block")
    return values.reshape(len(vectors.blocks), hidden_size)
