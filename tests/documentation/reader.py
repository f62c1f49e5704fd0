"""Somebody who follows a page: runs its blocks one after the other, beside a server."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.documentation import shown
from tests.documentation.blocks import ROOT, SHELL, Block
from tests.documentation.not_run import reason

_ADDRESS = re.compile(r"(127\.0\.0\.1|localhost):8000")
_CURL = "silent\nshow-error\nfail-with-body\n"
_TIMEOUT = 120


class Reader:
    """Has a copy of the checkout's files in `folder`, which is also the home directory."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._output = ""
        """What the last command has printed."""
        (folder / ".curlrc").write_text(_CURL)
        for name in ("Makefile", "constraints.txt", "pyproject.toml"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "configs", folder / "configs")
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "python").symlink_to(sys.executable)
        (programs / "tiller").write_text(f'#!/bin/sh\nexec {sys.executable} -m app.cli "$@"\n')
        (programs / "tiller").chmod(0o755)

    def follow(self, block: Block) -> None:
        if reason(block.page, block.first_line):
            return
        if block.language in SHELL:
            for command, printed in block.commands():
                if not reason(block.page, command):
                    self._output = self._follow_command(command)
                    assert shown.appears_in(printed, self._output), self._output
        elif block.language == "python":
            self._run(sys.executable, "-c", self._here(block.text))
        elif block.language == "json":
            self._follow_json(shown.parse(block.text))
        else:
            answered = shown.events(self._output)
            for event in shown.events(block.text):
                assert any(shown.looks_like(event, other) for other in answered), event

    def _follow_command(self, command: str) -> str:
        if re.search(r"(^| )make ", command):
            words = shlex.split(command.partition("make ")[2], comments=True)
            return self._run("make", "--dry-run", *words)
        if "benchmarks" in command:
            check_measurement(command)
            return ""
        return self._run("bash", "-euo", "pipefail", "-c", self._here(command))

    def _follow_json(self, content: Any) -> None:
        """A request is sent; anything else is a part of what the last command has printed."""
        if "messages" in content:
            answer = httpx.post(f"{self._url}/chat/completions", json=content, timeout=_TIMEOUT)
            assert answer.status_code == 200, answer.text
            self._output = answer.text
        else:
            assert shown.is_part_of(content, json.loads(self._output)), self._output

    def _here(self, text: str) -> str:
        """The text for the port of this server."""
        return _ADDRESS.sub(self._url.removeprefix("http://"), text)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _environment(self) -> Mapping[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TILLER_")}
        path = f"{self._folder / '.venv' / 'bin'}:{os.environ['PATH']}"
        own = {"HOME": str(self._folder), "PATH": path, "PYTHONPATH": str(ROOT), "TILLER_URL": self._url}
        return {**kept, **own}


def check_measurement(command: str) -> None:
    """A measurement takes minutes. So only its module and its options are checked."""
    found = re.search(r"-m (benchmarks\.\w+)|(benchmarks/\w+)\.py", command)
    assert found is not None, command
    place = ROOT / (found[1] or found[2]).replace(".", "/")
    sources = [*place.glob("*.py")] if place.is_dir() else [place.with_suffix(".py")]
    text = "\n".join(source.read_text() for source in sources)
    assert "__main__" in text or (place / "__main__.py").is_file(), command
    for option in re.findall(r"--([\w-]+)", command.partition("#")[0]):
        name = option.removeprefix("no-")
        assert re.search(rf"--{option}\b|\b{name.replace('-', '_')}\b", text), f"{command}: --{option}"
