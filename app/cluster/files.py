"""The small files that the settings name: read where `tiller cluster up` runs, written on each node."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from app.cluster.errors import ClusterError
from inference.interface.files import write_atomically

_MAX_BYTES = 16 * 2**20
"""Maximum size of all files together."""


class Luggage:
    """Collects files under new, relative names."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def add(self, path: Path, name: str) -> str:
        """Reads a file. Returns `name`. Raises ClusterError."""
        try:
            self.files[name] = path.read_bytes()
        except OSError as error:
            raise ClusterError(f"{path} cannot be read: {error.strerror}") from None
        if sum(map(len, self.files.values())) > _MAX_BYTES:
            raise ClusterError(
                f"the configuration's files are larger than {_MAX_BYTES // 2**20} MiB together"
            )
        return name

    def add_directory(self, directory: Path, name: str, suffix: str) -> str:
        """Reads a directory's files whose names end with `suffix`. Returns `name`. Raises ClusterError."""
        for path in sorted(directory.glob(f"*{suffix}")):
            if path.is_file():
                self.add(path, f"{name}/{path.name}")
        return name


def unpack_files(files: dict[str, bytes]) -> Path:
    """Writes the files into a new directory that only this user can access. Raises ClusterError.

    Removes the directories of processes that have ended.
    """
    try:
        base = own_directory()
        _remove_others(base, _is_running)
        directory = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=base))
        for name, content in files.items():
            write_atomically(directory / name, content)
    except OSError as error:
        raise ClusterError(f"{error.filename}: {error.strerror}") from None
    return directory


def own_directory() -> Path:
    """A directory on this host that only this user can access. Raises OSError or ClusterError."""
    base = Path(tempfile.gettempdir()) / f"tiller-cluster-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    status = base.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o777 != 0o700 or base.is_symlink():
        raise ClusterError(f"{base} must be a directory that only this user can access")
    return base


def _remove_others(base: Path, is_running: Callable[[int], bool]) -> None:
    for directory in base.iterdir():
        owner = directory.name.partition("-")[0]
        if owner.isdecimal() and not is_running(int(owner)):
            remove_directory(directory)


def remove_directory(directory: Path) -> None:
    """Removes a directory of `unpack_files`. Another process may do the same."""
    shutil.rmtree(directory, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
