"""Builds an environment with some of the installed distributions, as on a machine that has no others."""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def read_names(file: Path) -> list[str]:
    """The names in a requirements file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def with_dependencies(names: Iterable[str]) -> set[str]:
    """The normalised names of the distributions, and of all that they need. Skips what is not installed."""
    waiting, found = list(names), set()
    while waiting:
        name = normalise(waiting.pop())
        if name in found or (installed := _find(name)) is None:
            continue
        found.add(name)
        waiting.extend(_requirements(installed))
    return found


def build_environment(names: Iterable[str], folder: Path) -> Path:
    """Creates a virtual environment with links to the distributions. Returns its Python.

    Raises PackageNotFoundError.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = folder.glob("lib/python3*/site-packages")
    for name in names:
        installed = distribution(name)
        for top in {Path(str(file)).parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            place = site / top
            if not place.exists():
                place.symlink_to(Path(str(installed.locate_file(top))))
    return folder / "bin" / "python"


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _find(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _requirements(installed: Distribution) -> Iterator[str]:
    for text in installed.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name
