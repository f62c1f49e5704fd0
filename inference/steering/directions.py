"""A concept's direction in one model, its steering vectors, and the files of directions and calibration.

The directory of these files belongs to one model's weights and is a cache: lost directions are trained again.
"""

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from inference.interface.files import write_atomically
from inference.interface.protocol import ConceptReport
from inference.scheduling.probe import Array32

_log = logging.getLogger(__name__)


class Calibration(msgspec.Struct, frozen=True):
    """Measurements of a model's activations that steering needs."""

    norms: tuple[float, ...]
    """Per decoder block: the mean norm of its output, without the first position."""
    cap: float
    """The largest norm that steering may add to a decoder block's output, relative to that mean norm."""


@dataclass(frozen=True)
class Direction:
    """A concept's direction and dose in one model."""

    difference: Array32  # [num_layers, hidden_size]: mean block outputs, positive minus negative examples
    dose: float
    """The norm that strength 1 adds to a decoder block's output, relative to that output's mean norm."""


def unit_vectors(difference: Array32, blocks: Iterable[int], norms: Iterable[float]) -> Array32:
    """[len(blocks), hidden_size]: the direction at these decoder blocks, scaled to their output's mean norms.

    `norms`: of all decoder blocks. A zero direction gives a zero vector.
    """
    chosen = difference[list(blocks)].astype(np.float64)
    lengths = np.linalg.norm(chosen, axis=1, keepdims=True)
    targets = np.array(tuple(norms))[list(blocks), None]
    vectors: Array32 = (chosen / np.where(lengths > 0, lengths, 1.0) * targets).astype(np.float32)
    return vectors


def _direction(difference: Array32, dose: float) -> Direction:
    """Raises ValueError for values that would make a sequence's output not finite."""
    if not (np.isfinite(dose) and np.isfinite(difference).all()):
        raise ValueError("the direction or its dose is not finite")
    return Direction(difference, dose)


class DirectionFiles:
    """The files of directions and calibration. Writes are atomic. An unusable file counts as missing."""

    def __init__(self, directory: Path | None) -> None:
        """`directory` None: nothing is stored."""
        self._directory = directory

    def load(self, concept: str) -> tuple[Direction, ConceptReport] | None:
        if (path := self._path(f"{concept}.safetensors")) is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                report = msgspec.json.decode(metadata["report"], type=ConceptReport)
                return _direction(file.get_tensor("difference"), float(metadata["dose"])), report
        except (OSError, SafetensorError, msgspec.DecodeError, KeyError, ValueError) as error:
            _log.warning("the direction in %s cannot be used: %s", path.name, error)
            return None

    def save(self, concept: str, direction: Direction, report: ConceptReport) -> None:
        metadata = {"report": msgspec.json.encode(report).decode(), "dose": repr(direction.dose)}
        self._write(f"{concept}.safetensors", save({"difference": direction.difference}, metadata))

    def remove(self, concept: str) -> None:
        if path := self._path(f"{concept}.safetensors"):
            with contextlib.suppress(OSError):
                path.unlink()

    def load_calibration(self) -> Calibration | None:
        if (path := self._path("calibration.json")) is None or not path.is_file():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Calibration)
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("the model's calibration cannot be used: %s", error)
            return None

    def save_calibration(self, calibration: Calibration) -> None:
        self._write("calibration.json", msgspec.json.encode(calibration))

    def _path(self, name: str) -> Path | None:
        return None if self._directory is None else self._directory / name

    def _write(self, name: str, content: bytes) -> None:
        if self._directory is None:
            return
        try:
            write_atomically(self._directory / name, content, mode=0o644)
        except OSError as error:
            _log.warning("%s cannot be written: %s", name, error)
