"""Starts a real server for the evaluation, and sends it requests over HTTP."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

MODEL = "smollm2-135m-instruct"
_CONCURRENCY = 64


class Server:
    def __init__(self, url: str) -> None:
        self.url = url

    def create(self, name: str, examples: list[dict[str, str]]) -> dict:
        """Creates a concept. Returns it with its report."""
        body = {"name": name, "examples": examples}
        response = httpx.post(f"{self.url}/steering_concepts", json=body, timeout=None)
        response.raise_for_status()
        return response.json()

    def answer(self, prompts: list[str], **fields: object) -> list[str]:
        """Greedy answers. Sends the requests at the same time, up to a limit."""
        return asyncio.run(self._answer_all(prompts, fields))

    async def _answer_all(self, prompts: list[str], fields: dict[str, object]) -> list[str]:
        slots = asyncio.Semaphore(_CONCURRENCY)
        async with httpx.AsyncClient(base_url=self.url, timeout=None) as client:

            async def ask(prompt: str) -> str:
                messages = [{"role": "user", "content": prompt}]
                body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 48, **fields}
                async with slots:
                    response = await client.post("/chat/completions", json=body)
                response.raise_for_status()
                return response.json()["choices"][0]["message"]["content"]

            return await asyncio.gather(*map(ask, prompts))


@contextmanager
def serving(directory: Path, block: int | None) -> Iterator[Server]:
    """Serves the embedded model on a free port, with steering at decoder block `block`, or where it chooses.

    The server stores concepts in `directory`.
    """
    (directory / "none").mkdir()
    config = directory / "config.yaml"
    settings: dict[str, object] = {
        "data_directory": str(directory),
        "steering": {"concepts": str(directory / "none")},
        "engine": {"steering_blocks": None if block is None else [block]},
    }
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "app.cli", "serve", "--config", str(config), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            welcome = re.search(r"at (http://\S+)", process.stdout.readline())
            if welcome is None:
                sys.exit("the server did not start")
            yield Server(welcome[1])
        finally:
            process.terminate()
