"""Lets pip in a container use this machine's settings, such as the index of a company, and local packages."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

from tests.image.engine import Mounts

_LOCAL = re.compile(r"(?<!\S)(?:file://)?(/[^\s,]+)")


def pip_mounts(folder: Path) -> Mounts:
    """Writes a pip.conf into the folder. Returns it and the local files and folders that it names."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = parse(listed)
    if not settings:
        return {}
    content = configparser.ConfigParser(interpolation=None)
    content["global"] = settings
    with (folder / "pip.conf").open("w") as file:
        content.write(file)
    return {"/etc/pip.conf": str(folder / "pip.conf"), **local_files(settings)}


def parse(listed: str) -> dict[str, str]:
    """The settings in the output of `pip config list`. A variable overrides a file."""
    pairs = [line.partition("=") for line in listed.splitlines() if "=" in line]
    values = {name: value.strip("'\"").replace("\\n", " ") for name, _, value in pairs}
    files = {
        name.removeprefix("global."): text for name, text in values.items() if name.startswith("global.")
    }
    variables = {
        name.removeprefix(":env:."): text for name, text in values.items() if name.startswith(":env:.")
    }
    return {**files, **variables}


def local_files(settings: dict[str, str]) -> Mounts:
    """The files and folders of this machine that the settings name."""
    named = {Path(path) for text in settings.values() for path in _LOCAL.findall(text)}
    # A local index has the packages beside its folder `simple`.
    folders = {path.parent if path.name == "simple" else path for path in named}
    return {str(path): str(path) for path in sorted(folders) if path.exists()}
