"""The image that the Dockerfile begins with, or a stand-in where no registry can be reached.

The stand-in is made of Debian's packages, with Debian's version of Python.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.image.engine import Engine, EngineError

_SUITE = "bookworm"
_STAND_IN = f"localhost/tiller-test-base:{_SUITE}"
_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
_MIRROR = "http://deb.debian.org/debian"


def find_base(engine: Engine, image: str, folder: Path) -> str:
    """The image, or a stand-in if no registry can be reached and it is not here."""
    try:
        if not engine.has(image):
            engine.run("pull", "--quiet", image)
    except EngineError:
        if not engine.has(_STAND_IN):
            _make(folder)
        return _STAND_IN
    return image


def _make(folder: Path) -> None:
    for program in ("debootstrap", "buildah"):
        if shutil.which(program) is None:
            sys.exit(f"image-test: no registry can be reached, and there is no {program} to make a base")
    if os.geteuid():
        sys.exit("image-test: no registry can be reached, and only root can make a base with debootstrap")
    _commit(_bootstrap(folder), _STAND_IN)


def _bootstrap(folder: Path) -> Path:
    """A folder with a Debian that has `python`. pip may install into it, as in the real image."""
    root = folder / "base"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root), _mirror()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (root / "usr/bin/python").symlink_to("python3")
    for file in (
        *root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"),
        *root.glob("var/cache/apt/archives/*.deb"),
    ):
        file.unlink()
    for lists in root.glob("var/lib/apt/lists/*"):
        shutil.rmtree(lists) if lists.is_dir() else lists.unlink()
    return root


def _mirror() -> str:
    """The mirror of this machine's apt, if it is one of Debian."""
    policy = subprocess.run(["apt-cache", "policy"], capture_output=True, text=True).stdout
    found = re.search(r"\d+ (https?://\S+/debian) ", policy)
    return found[1] if found else _MIRROR


def _commit(root: Path, image: str) -> None:
    container = _buildah("from", "scratch")
    _buildah("add", "--quiet", container, str(root), "/")
    _buildah("commit", "--quiet", "--rm", container, image)
    shutil.rmtree(root)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
