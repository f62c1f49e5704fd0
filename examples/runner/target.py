"""The Tiller server that the clients call: started here or given, and the answers that it gives itself."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.peers.processes import ServerProcess
from benchmarks.peers.servers import free_port

MODEL = "smollm2-135m-instruct"
_ROOT = Path(__file__).parents[2]
_TRAINING_SECONDS = 1800.0  # the first steered request trains the concept
_QUESTION = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me about the hotel."}],
    "max_tokens": 32,
    "temperature": 0,
    "steering_concepts": ["_worker/sentiment"],
}
"""What all examples ask."""


class TargetError(Exception):
    """The server cannot be used for the examples. The message is one line."""


class Target:
    """A server, with its own answers to the question of all examples."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self._answers: dict[float, str] = {}

    def check(self) -> None:
        """Raises TargetError if the server has another model, or if steering does not change its answers."""
        models = [model["id"] for model in self._request("GET", "/models", None)["data"]]
        if MODEL not in models:
            raise TargetError(f"{self.url} serves {', '.join(models)}; the examples ask {MODEL}")
        if len({self.answer(strength) for strength in (-1, 0, 1)}) < 3:
            raise TargetError(f"the answers of {self.url} at strengths -1, 0 and 1 do not differ")

    def answer(self, strength: float) -> str:
        """The whole answer over plain HTTP. Greedy, so that a client must get the same."""
        if strength not in self._answers:
            body = {**_QUESTION, "steering_strength": strength}
            completion = self._request("POST", "/chat/completions", body)
            self._answers[strength] = str(completion["choices"][0]["message"]["content"])
        return self._answers[strength]

    def _request(self, method: str, path: str, body: object) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            response = httpx.request(
                method, self.url + path, json=body, headers=headers, timeout=_TRAINING_SECONDS
            )
        except httpx.HTTPError as error:
            raise TargetError(f"{self.url} cannot be reached: {error}") from None
        if response.status_code != 200:
            raise TargetError(f"{self.url}{path} answered {response.status_code}: {response.text[:200]}")
        return response.json()


@contextmanager
def serving(folder: Path, lenient: bool) -> Iterator[Target]:
    """Runs the quick start's server within the context. Raises ServerError if it does not start."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    command += ["--config", str(_ROOT / "configs" / "quickstart.yaml")]
    environment = {
        "TILLER_API__STRICT": "false" if lenient else "true",
        "TILLER_DATA_DIRECTORY": str(folder / "data"),
        "TILLER_STEERING__CONCEPTS": str(_ROOT / "configs" / "concepts"),
        "TILLER_STEERING__TRAIN_AT_START": "false",
    }
    process = ServerProcess(command, environment, folder / "server.log")
    try:
        target = Target(f"http://127.0.0.1:{port}", "none")
        process.wait_until_ready(target.url)
        yield target
    finally:
        process.terminate()
