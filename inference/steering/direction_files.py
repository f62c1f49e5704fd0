"""The files of directions and calibration, in a directory that belongs to one model's weights.

The directory is a cache: lost directions are trained again.
"""

import contextlib
import logging
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.numpy import load, save

from inference.interface.concepts import ConceptReport
from inference.interface.files import write_atomically
from inference.steering.directions import Calibration, Direction

_log = logging.getLogger(__name__)


class _Metadata(msgspec.Struct, frozen=True):
    """What a direction's file holds beside its vectors. See Direction."""

    blocks: tuple[int, ...]
    lengths: tuple[float, ...]
    down_scale: float
    max_strength: float
    max_down_strength: float
    reading_block: int
    reading_range: tuple[float, float]
    up_blocks: tuple[int, ...] | None = None
    down_blocks: tuple[int, ...] | None = None


def encode_direction(direction: Direction, report: ConceptReport) -> bytes:
    """The content of a direction's file, in the format safetensors."""
    numbers = {name: getattr(direction, name) for name in _Metadata.__struct_fields__}
    metadata = {
        "report": msgspec.json.encode(report).decode(),
        "direction": msgspec.json.encode(_Metadata(**numbers)).decode(),
    }
    return save({"units": direction.units}, metadata)


def decode_direction(content: bytes) -> tuple[Direction, ConceptReport]:
    """Raises ValueError."""
    try:
        units = load(content)["units"]
        length = int.from_bytes(content[:8], "little")
        stored = msgspec.json.decode(content[8 : 8 + length])["__metadata__"]
        report = msgspec.json.decode(stored["report"], type=ConceptReport)
        metadata = msgspec.json.decode(stored["direction"], type=_Metadata)
    except (SafetensorError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from None
    return Direction(units=units, **msgspec.structs.asdict(metadata)), report


class DirectionFiles:
    """The files of directions and calibration. Writes are atomic. An unusable file counts as missing."""

    def __init__(self, directory: Path | None) -> None:
        """`directory` None: nothing is stored."""
        self._directory = directory

    def load(self, concept: str) -> tuple[Direction, ConceptReport] | None:
        if (path := self._path(f"{concept}.safetensors")) is None or not path.is_file():
            return None
        try:
            return decode_direction(path.read_bytes())
        except (OSError, ValueError) as error:
            _log.warning("the direction in %s cannot be used: %s", path.name, error)
            return None

    def save(self, concept: str, direction: Direction, report: ConceptReport) -> None:
        self._write(f"{concept}.safetensors", encode_direction(direction, report))

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
