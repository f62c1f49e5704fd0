"""What a request's concepts amount to: one row of the bank and a scale. Knows nothing of training."""

import hashlib
import struct

import numpy as np

from inference.interface.protocol import SteeringSpec
from inference.scheduling.probe import Array32
from inference.scheduling.sequence import Steering
from inference.steering.bank import SteeringBank
from inference.steering.directions import Calibration, Direction, unit_vectors


class BankFullError(Exception):
    """As many different vectors are in use as the bank has rows."""


class Steerer:
    def __init__(self, bank: SteeringBank) -> None:
        self.bank = bank
        self.calibration: Calibration | None = None
        """None until the first concept is trained; there is no direction before."""
        self._vectors: dict[str, Array32] = {}

    def add(self, concept: str, direction: Direction) -> None:
        """From now on requests can name it. Those that run keep what they began with."""
        assert self.calibration is not None  # noqa: S101 - for the type checker
        unit = unit_vectors(direction.difference, self.bank.blocks, self.calibration.norms)
        self._vectors[concept] = np.float32(direction.dose) * unit

    def remove(self, concept: str) -> None:
        self._vectors.pop(concept, None)

    def knows(self, concept: str) -> bool:
        return concept in self._vectors

    def steer(self, spec: SteeringSpec, num_users: int) -> Steering | None:
        """The steering of `num_users` sequences, each of which is to `release` it; None if it is nothing.

        All concepts must be known. Raises BankFullError.
        """
        concepts = sorted(set(spec.concepts))  # so that their order does not matter, down to the last bit
        if not concepts or spec.strength == 0:
            return None
        vectors: Array32 = np.stack([self._vectors[concept] for concept in concepts]).sum(0)
        return self.acquire(vectors, self._limit(vectors, spec.strength), num_users)

    def acquire(self, vectors: Array32, scale: float = 1.0, num_users: int = 1) -> Steering:
        """Raises BankFullError."""
        row = self.bank.acquire(vectors, num_users)
        if row is None:
            raise BankFullError
        content = hashlib.sha256(vectors.tobytes())
        content.update(struct.pack("<d", scale))
        return Steering(row, scale, content.digest())

    def release(self, steering: Steering | None) -> None:
        """One of its users has ended."""
        if steering is not None:
            self.bank.release(steering.row)

    def _limit(self, vectors: Array32, strength: float) -> float:
        """The strength, or less of it if a block's output would get more than the model bears."""
        assert self.calibration is not None  # noqa: S101 - for the type checker
        norms = np.array(self.calibration.norms)[list(self.bank.blocks)]
        dose = float((np.linalg.norm(vectors, axis=1) / norms).max())
        if abs(strength) * dose <= self.calibration.cap:
            return strength
        return float(np.copysign(self.calibration.cap / dose, strength))
