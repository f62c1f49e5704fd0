"""Writes files atomically. Knows nothing of their content."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".*.tmp"
"""Glob pattern of the temporary files that a killed process leaves behind."""


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Creates or replaces a file, and syncs it: after the return, the file survives a loss of power.

    Creates missing directories. `mode`: the file's permissions. Raises OSError; the old file is then still
    in place, or the new file is in place but may not survive a loss of power.
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
    """Syncs a directory, so that the names in it survive a loss of power. Raises OSError."""
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
