"""The optimizer Adam (Kingma and Ba, arXiv:1412.6980), in NumPy: the trainer knows no tensors of torch."""

import numpy as np

from inference.scheduling.arrays import Array64

_MEAN_DECAY, _SQUARE_DECAY = 0.9, 0.95
_EPSILON = 1e-8


class Adam:
    def __init__(self, shape: tuple[int, ...], rate: float) -> None:
        """`rate`: about how far a step moves each number."""
        self._rate = rate
        self._mean = np.zeros(shape)
        self._square = np.zeros(shape)
        self._steps = 0

    def step(self, gradient: Array64) -> Array64:
        """What to add to the numbers, so that what `gradient` is the gradient of falls."""
        self._steps += 1
        self._mean += (1 - _MEAN_DECAY) * (gradient - self._mean)
        self._square += (1 - _SQUARE_DECAY) * (gradient**2 - self._square)
        mean = self._mean / (1 - _MEAN_DECAY**self._steps)
        square = self._square / (1 - _SQUARE_DECAY**self._steps)
        change: Array64 = -self._rate * mean / (np.sqrt(square) + _EPSILON)
        return change
