"""Checks the directories that a server writes to, and the space on their disks."""

import os
import shutil
from pathlib import Path

from app.commands.doctor.finding import Finding, ok, problem, readable_size, warning
from app.configuration import SettingsError, refuse_other_files
from app.settings import Settings
from inference.interface.diagnosis import Diagnosis

_LITTLE_SPACE = 2**30


def check_data(settings: Settings) -> Finding:
    """Whether concepts and access tokens can be stored."""
    directory = Path(settings.data_directory).expanduser()
    try:
        refuse_other_files(settings)
    except SettingsError as error:
        return problem(
            str(error), "set cache_directory and data_directory to directories of the server's user"
        )
    if not _is_writable(directory):
        return problem(
            f"{directory} cannot be written: concepts and access tokens cannot be stored",
            "run as the directory's owner, change its owner, or set data_directory",
        )
    return ok(f"{directory}{_describe(directory)}")


def check_cache(settings: Settings, diagnosis: Diagnosis) -> Finding:
    """Whether models and kernels can be stored."""
    directory = Path(settings.cache_directory).expanduser()
    if _is_writable(directory):
        return ok(f"{directory}{_describe(directory)}")
    mend = "run as the directory's owner, change its owner, or set cache_directory"
    if diagnosis.model.todo:
        return problem(f"{directory} cannot be written, and the model is not there yet", mend)
    return warning(f"{directory} cannot be written: each start trains all concepts again", mend)


def check_disk(settings: Settings, diagnosis: Diagnosis) -> Finding:
    """Whether the disks have space for the model, and for what a server writes."""
    needed = diagnosis.model.cache_bytes
    cache, data = (Path(path).expanduser() for path in (settings.cache_directory, settings.data_directory))
    free = {path: shutil.disk_usage(_existing(path)).free for path in (cache, data)}
    if needed > free[cache]:
        return problem(
            f"the model needs {readable_size(needed)} in {cache}, and {readable_size(free[cache])} are free",
            "make space, or set cache_directory to a directory on another disk",
        )
    for path, size in free.items():
        if size < _LITTLE_SPACE:
            return warning(f"only {readable_size(size)} are free for {path}", "make space on this disk")
    return ok(f"{readable_size(min(free.values()))} are free")


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.exists())


def _is_writable(directory: Path) -> bool:
    """Whether files can be made in the directory, or the directory can be made."""
    existing = _existing(directory)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _describe(directory: Path) -> str:
    if not directory.exists():
        return " (will be made)"
    size = sum(file.lstat().st_size for file in directory.rglob("*") if not file.is_symlink())
    return f" ({readable_size(size)})"
