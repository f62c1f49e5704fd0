"""Where Triton keeps compiled kernels, so that they are compiled once and not at each start."""

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

_log = logging.getLogger(__name__)

_VARIABLE = "TRITON_CACHE_DIR"


def use_directory(cache_directory: Path) -> None:
    """Makes Triton use `cache_directory`/triton, unless the operator has set TRITON_CACHE_DIR.

    Call it before Triton compiles anything. If the folder cannot be written, Triton uses a temporary one, and
    a warning names the remedy. Raises OSError if there is no temporary folder either.
    """
    chosen = os.environ.get(_VARIABLE)
    folder = Path(chosen) if chosen else cache_directory / "triton"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _log.warning(
            "compiled Triton kernels cannot be kept in %s (%s), so each start compiles them again: make the "
            "folder writable, or set %s to another folder",
            folder,
            error.strerror,
            _VARIABLE if chosen else f"engine.cache_directory or the variable {_VARIABLE}",
        )
        folder = Path(tempfile.mkdtemp(prefix="tiller-triton-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[_VARIABLE] = str(folder)
