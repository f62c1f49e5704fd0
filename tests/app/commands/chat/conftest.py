"""A fake model that says what a test wants, and two concepts: kind is trained, rude is not."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tokenizers import Tokenizer
from typer.testing import CliRunner

from app.cli import build_commands
from app.settings import Settings
from tests.app.contract.support import pairs, store_concepts
from tests.app.fakes import FakeEngine, reply

Say = Callable[..., None]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    store_concepts(tmp_path / "data", {"kind": pairs("so kind"), "rude": pairs("so rude")})
    return settings


@pytest.fixture
def say(engine: FakeEngine, tiny_tokenizer: Tokenizer) -> Say:
    """`say(text)` makes the model answer with this text from now on."""

    def use(text: str, **options: object) -> None:
        engine.script = reply(tiny_tokenizer.encode(text).ids, **options)

    return use


async def chat(*words: str, url: str, stdin: str | bytes = "", **environment: str | None) -> Result:
    """Runs `tiller chat …` on another thread, because the server runs in this one."""
    runner = CliRunner(env={"TILLER_TOKEN": None, "COLUMNS": "80", **environment})
    arguments = ["chat", *words, "--url", url]
    return await asyncio.to_thread(runner.invoke, build_commands(), arguments, input=stdin)
