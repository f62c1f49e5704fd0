"""Files that are written whole or not at all. Knows nothing of what is in them."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".*.tmp"
"""Matches what a process that was killed leaves behind."""


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Creates or replaces a file. When this returns, the file survives a loss of power.

    Creates missing directories. Raises OSError; the file is then the old one, or has no name in its
    directory that is sure to survive. `mode`: the file's permissions.
    """
    _make_directory(path.parent)
    handle, scratch = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory survive a loss of power. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_directory(directory: Path) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_directory(path.parent)
