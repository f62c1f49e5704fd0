"""Turns a request's concepts and strengths into changes of its activations. Knows nothing of training."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from inference.interface.requests import SteeringMode, SteeringScope, SteeringSpec
from inference.scheduling.arrays import Array32
from inference.scheduling.steering import BlockVectors, Condition, Projection, Reader, Steering
from inference.steering.directions import Calibration, Direction, relative_dose

ByBlock = dict[int, Array32]
"""A vector [hidden_size] by decoder block."""

_SAME_DIRECTION = 1e-4
"""Directions whose sines are smaller than about this are one direction for a projection."""


@dataclass(frozen=True)
class RequestSteering:
    """What a request's SteeringSpec comes to."""

    steering: Steering | None
    """None: nothing is to be done."""
    condition: Condition | None
    clipped: dict[str, float]
    """The strengths that were reduced: concept -> strength that is used."""


class Steerer:
    """The directions of the concepts that requests can name."""

    def __init__(self) -> None:
        self.calibration: Calibration | None = None
        """None until the first concept is trained. There is no direction before that."""
        self._directions: dict[str, Direction] = {}

    def add(self, concept: str, direction: Direction) -> None:
        """Makes the concept available to new requests. Running requests keep the vectors they began with."""
        self._directions[concept] = direction

    def remove(self, concept: str) -> None:
        self._directions.pop(concept, None)

    def get(self, concept: str) -> Direction | None:
        return self._directions.get(concept)

    def steer(self, spec: SteeringSpec, num_prompt_tokens: int) -> RequestSteering:
        """All concepts must be known."""
        strengths, clipped = self._clip(spec)
        condition = None
        if spec.condition is not None:
            reader = self.reader(spec.condition.concept, 1, num_prompt_tokens)
            condition = Condition(reader, spec.condition.above, spec.condition.below)
        scope = spec.scope if condition is None else SteeringScope.ANSWER
        steering = None
        if strengths:
            chosen = self._chosen(strengths)
            added, projections = (
                (_sum(chosen), ()) if spec.mode is SteeringMode.ADD else _project(chosen, spec.mode)
            )
            steering = Steering(
                added,
                projections,
                first=num_prompt_tokens if scope is SteeringScope.ANSWER else 1,
                end=num_prompt_tokens if scope is SteeringScope.PROMPT else None,
            )
        return RequestSteering(steering, condition if steering else None, clipped)

    def reader(self, concept: str, first: int, end: int | None = None) -> Reader:
        """Reads a known concept at the positions from `first` to before `end`."""
        direction = self._directions[concept]
        vectors = BlockVectors((direction.reading_block,), direction.reading_unit)
        return Reader(vectors, *direction.reading_range, first=first, end=end)

    def _chosen(self, strengths: dict[str, float]) -> list[tuple[Direction, float]]:
        """In an order that does not depend on the request's, so that it changes no bit of a sum."""
        return [(self._directions[concept], strengths[concept]) for concept in sorted(strengths)]

    def _clip(self, spec: SteeringSpec) -> tuple[dict[str, float], dict[str, float]]:
        """The strengths that are used, without those that are 0, and the ones that were changed."""
        used = {
            concept: self._allowed(concept, given, spec.mode) for concept, given in spec.strengths.items()
        }
        if spec.mode is not SteeringMode.ABLATE:
            factor = self._factor(used)
            used = {concept: factor * strength for concept, strength in used.items()}
        clipped = {
            concept: used[concept] for concept, given in spec.strengths.items() if used[concept] != given
        }
        return {concept: strength for concept, strength in used.items() if strength}, clipped

    def _allowed(self, concept: str, strength: float, mode: SteeringMode) -> float:
        if mode is SteeringMode.ABLATE:
            return min(max(strength, 0.0), 1.0)
        return self._directions[concept].clip(strength)

    def _factor(self, strengths: dict[str, float]) -> float:
        """What to multiply the strengths by, so that the concepts together do not exceed the limit.

        The limit is the model's cap, or what one of the concepts may add alone if that is more.
        """
        if len(strengths) < 2:
            return 1.0
        assert self.calibration is not None  # noqa: S101 - for the type checker
        chosen = self._chosen(strengths)
        total = _sum(chosen)
        norms = np.array(self.calibration.norms)[list(total.blocks)]
        dose = float((np.linalg.norm(total.vectors, axis=1) / norms).max())
        alone = (relative_dose(direction, self.calibration.norms, strength) for direction, strength in chosen)
        limit = max(self.calibration.cap, *alone)
        return min(1.0, limit / dose) if dose > 0 else 1.0


def _project(
    chosen: list[tuple[Direction, float]], mode: SteeringMode
) -> tuple[BlockVectors | None, tuple[Projection, ...]]:
    """Ablation scales each concept's component by 1 - strength; clamping replaces it.

    If directions u_i are not orthogonal, changes along u_i would also change the other components. So the
    changes go along the dual vectors d_i, with u_j d_i = 1 for i = j and else 0: the rows of (U U^T)^-1 U.
    """
    if mode is SteeringMode.CLAMP:
        units = [_by_block(direction, direction.units, strength) for direction, strength in chosen]
    else:
        units = [_by_block(direction, direction.units) for direction, _ in chosen]
    duals = _dual_vectors(units)
    reads = [_block_vectors(vectors) for vectors in units]
    if mode is SteeringMode.ABLATE:
        writes = [
            {block: np.float32(-strength) * dual for block, dual in vectors.items()}
            for vectors, (_, strength) in zip(duals, chosen, strict=True)
        ]
        added = None
    else:
        writes = [{block: -dual for block, dual in vectors.items()} for vectors in duals]
        targets = [
            _by_block(direction, direction.components(strength), strength) for direction, strength in chosen
        ]
        added = _block_vectors(
            _total(
                {block: target[block] * dual for block, dual in vectors.items()}
                for vectors, target in zip(duals, targets, strict=True)
            )
        )
    pairs = zip(reads, map(_block_vectors, writes), strict=True)
    return added, tuple(Projection(read, write) for read, write in pairs)


def _sum(chosen: list[tuple[Direction, float]]) -> BlockVectors:
    """What the concepts together add."""
    return _block_vectors(
        _total(_by_block(direction, direction.vectors(strength), strength) for direction, strength in chosen)
    )


def _by_block(direction: Direction, values: Array32, strength: float | None = None) -> ByBlock:
    """`values`: one row for each block of the direction. `strength`: only the blocks that it steers."""
    steered = direction.blocks if strength is None else direction.steered(strength)
    rows = zip(direction.blocks, values, strict=True)
    return {block: row for block, row in rows if block in steered}


def _total(parts: Iterable[ByBlock]) -> ByBlock:
    total: ByBlock = {}
    for part in parts:
        for block, vector in part.items():
            total[block] = total[block] + vector if block in total else vector
    return total


def _block_vectors(by_block: ByBlock) -> BlockVectors:
    blocks = tuple(sorted(by_block))
    return BlockVectors(blocks, np.stack([by_block[block] for block in blocks]))


def _dual_vectors(units: list[ByBlock]) -> list[ByBlock]:
    """For each direction its dual vector at each of its blocks, among the directions at this block."""
    duals: list[ByBlock] = [{} for _ in units]
    for block in set().union(*units):
        present = [number for number, by_block in enumerate(units) if block in by_block]
        matrix = np.stack([units[number][block] for number in present]).astype(np.float64)
        rows = np.linalg.pinv(matrix @ matrix.T, rcond=_SAME_DIRECTION**2, hermitian=True) @ matrix
        for number, row in zip(present, rows, strict=True):
            duals[number][block] = row.astype(np.float32)
    return duals
