"""What GivenVectors add."""

import numpy as np

from inference.interface.concepts import GivenVectors


def added_by(given: GivenVectors) -> np.ndarray:
    """[len(blocks), hidden_size] float32: what strength 1 adds to each block's output."""
    rows = np.frombuffer(given.values, "<f4").reshape(len(given.blocks), -1)
    return rows if given.lengths is None else rows * np.array(given.lengths, np.float32)[:, None]
