"""The directions that workers have trained, as files of the registry."""

import hashlib
import logging
import re
from pathlib import Path

import msgspec

from inference.interface.files import write_atomically

_log = logging.getLogger(__name__)
_DIGEST = re.compile("[0-9a-f]{64}")


class Archived(msgspec.Struct, frozen=True):
    content: bytes
    calibration: bytes


class DirectionArchive:
    """A directory with one directory for each model. An unusable file counts as missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, model: str, concept: str, content: bytes, calibration: bytes) -> None:
        """Keeps a direction, unless there is one. `model`: any text. `concept`: a digest."""
        file = self._file(model, concept)
        if file is None or file.exists():
            return
        try:
            write_atomically(file, msgspec.msgpack.encode(Archived(content, calibration)))
        except OSError as error:
            _log.error("a direction cannot be kept: %s", error)

    def get(self, model: str, concept: str) -> Archived | None:
        file = self._file(model, concept)
        try:
            return msgspec.msgpack.decode(file.read_bytes(), type=Archived) if file else None
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            _log.error("a direction cannot be read: %s", error)
            return None

    def _file(self, model: str, concept: str) -> Path | None:
        """None if `concept` is no digest."""
        if not _DIGEST.fullmatch(concept):
            return None
        return self._directory / hashlib.sha256(model.encode()).hexdigest() / concept
