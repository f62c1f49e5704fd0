"""Turns a request's concepts and strength into a row of the bank and a scale. Knows nothing of training."""

import hashlib
import struct

import numpy as np

from inference.interface.protocol import SteeringSpec
from inference.scheduling.probe import Array32
from inference.scheduling.sequence import Steering
from inference.steering.bank import SteeringBank
from inference.steering.directions import Calibration, Direction, unit_vectors


class BankFullError(Exception):
    """All rows of the steering bank are in use."""


class Steerer:
    def __init__(self, bank: SteeringBank) -> None:
        self.bank = bank
        self.calibration: Calibration | None = None
        """None until the first concept is trained. There is no direction before that."""
        self._vectors: dict[str, Array32] = {}

    def add(self, concept: str, direction: Direction) -> None:
        """Makes the concept available to new requests. Running requests keep the vectors they began with."""
        assert self.calibration is not None  # noqa: S101 - for the type checker
        unit = unit_vectors(direction.difference, self.bank.blocks, self.calibration.norms)
        self._vectors[concept] = np.float32(direction.dose) * unit

    def remove(self, concept: str) -> None:
        self._vectors.pop(concept, None)

    def knows(self, concept: str) -> bool:
        return concept in self._vectors

    def steer(self, spec: SteeringSpec, num_users: int) -> Steering | None:
        """The steering for `num_users` sequences. Each must `release` it. None if nothing is to be added.

        All concepts must be known. Raises BankFullError if no row is free.
        """
        concepts = sorted(set(spec.concepts))  # so that their order changes no bit of the sum
        if not concepts or spec.strength == 0:
            return None
        vectors: Array32 = np.stack([self._vectors[concept] for concept in concepts]).sum(0)
        return self.acquire(vectors, self._limit(vectors, spec.strength), num_users)

    def acquire(self, vectors: Array32, scale: float = 1.0, num_users: int = 1) -> Steering:
        """Reserves a row for `vectors` [len(blocks), hidden_size]. Raises BankFullError if none is free."""
        row = self.bank.acquire(vectors, num_users)
        if row is None:
            raise BankFullError
        content = hashlib.sha256(vectors.tobytes())
        content.update(struct.pack("<d", scale))
        return Steering(row, scale, content.digest())

    def release(self, steering: Steering | None) -> None:
        """Removes one user of the steering."""
        if steering is not None:
            self.bank.release(steering.row)

    def _limit(self, vectors: Array32, strength: float) -> float:
        """The strength, reduced if it would add more than the cap to the output of a decoder block."""
        assert self.calibration is not None  # noqa: S101 - for the type checker
        norms = np.array(self.calibration.norms)[list(self.bank.blocks)]
        dose = float((np.linalg.norm(vectors, axis=1) / norms).max())
        if abs(strength) * dose <= self.calibration.cap:
            return strength
        return float(np.copysign(self.calibration.cap / dose, strength))
