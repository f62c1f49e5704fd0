"""The command line: mistakes are one line, and a token works as configured."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from app.settings import AuthSettings

ROOT = Path(__file__).parents[2]


def tiller(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_new_token_is_shown_with_what_to_configure() -> None:
    lines = tiller("token", "new", 'Ada "x": y').stdout.splitlines()
    token = lines[0].removeprefix("Token: ")
    auth = AuthSettings.model_validate(yaml.safe_load("\n".join(lines[3:]))["auth"])
    assert [(entry.name, entry.sha256) for entry in auth.tokens] == [
        ('Ada "x": y', hashlib.sha256(token.encode()).hexdigest())
    ]


def test_a_mistake_in_the_settings_is_one_line() -> None:
    done = tiller("serve", TILLER_SERVER__PORT="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tiller: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = tiller("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1
