"""Makes a model's directory once and keeps it in the cache. Knows no formats."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from inference.interface.directories import check_directory
from inference.interface.errors import SourceError

_log = logging.getLogger("tiller.worker")


def make_once(directory: Path, make: Callable[[Path], Path]) -> Path:
    """Returns `directory`. Makes it first if it is missing or not complete.

    `make` gets an empty temporary directory, and returns a model directory in it. So `directory` is complete
    or does not exist. Only one process makes it; others wait. Raises SourceError and OSError.
    """
    if _fault(directory) is None:
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if fault := _fault(directory):  # another process may have made it meanwhile
            if directory.exists():
                _log.warning("%s; the model is made again", fault)
                shutil.rmtree(directory)
            with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
                shutil.move(check_directory(make(Path(scratch))), directory)
    return directory


def size_of(files: Iterable[Path]) -> int:
    """The bytes of these files on the disk: of a sparse file only what has been written."""
    total = 0
    for file in files:
        with suppress(OSError):  # moved or removed meanwhile
            total += file.stat().st_blocks * 512
    return total


def is_complete(directory: Path) -> bool:
    """Whether `make_once` would use the directory as it is."""
    return _fault(directory) is None


def _fault(directory: Path) -> SourceError | None:
    """What is missing in the directory. None: it is complete."""
    try:
        check_directory(directory)
    except SourceError as error:
        return error
    return None
