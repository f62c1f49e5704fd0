"""Fixtures: `tiller serve` as a process, with its worker and the embedded model."""

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from app.settings import Settings
from inference.models.sources import resolve
from tests.inference.conftest import make_model

MODEL = "smollm2-135m-instruct"
TOKEN = "a token for tests"
TOKEN_SHA256 = hashlib.sha256(TOKEN.encode()).hexdigest()
START_SECONDS = 600  # the first start downloads and converts the model


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[str]

    def post(self, path: str, body: object, timeout: float = 120, **options: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=timeout, **options)

    def get(self, path: str, timeout: float = 30) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=timeout)

    def delete(self, path: str) -> httpx.Response:
        return httpx.delete(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)

    def chat(self, content: str, timeout: float = 120, **fields: object) -> dict:
        """A whole answer. Greedy unless `fields` set a temperature."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            **fields,
        }
        response = self.post("/chat/completions", body, timeout)
        assert response.status_code == 200, response.text
        return response.json()


@contextmanager
def serving(config: dict, directory: Path, module: str = "app.cli") -> Iterator[Server]:
    """Runs a server with this configuration, on a free port, until the end of the context.

    The server stores concepts in `directory`, and puts temporary files into its subdirectory `tmp`. It trains
    concepts only on request and with few questions. By default it computes in one thread: other tests run at
    the same time, and threads that wait for each other on busy cores can be much slower than one thread.
    """
    file = directory / "config.yaml"
    config = {
        "data_directory": str(directory),
        **config,
        "engine": {"threads": 1, **config.get("engine", {})},
        "steering": {"train_at_start": False, "questions": 2, **config.get("steering", {})},
    }
    file.write_text(yaml.safe_dump(config))
    (directory / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", module, "serve", "--config", str(file), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(directory / "tmp")},
    )
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        welcome = re.search(r"at (http://\S+)", process.stdout.readline())
        assert welcome is not None, f"the server did not start: exit status {process.wait()}"
        watchdog.cancel()
        yield Server(welcome[1], process)
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture(scope="session")
def embedded_config() -> dict:
    return {"auth": {"tokens": [{"name": "tests", "sha256": TOKEN_SHA256}]}}


@pytest.fixture(scope="session")
def server(embedded_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(embedded_config, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def quantized_config(embedded_config: dict) -> dict:
    """As `make serve` runs it, three times as fast. For tests that need no full precision."""
    return {**embedded_config, "engine": {"quantization": "integer"}}


@pytest.fixture(scope="session")
def quantized_server(quantized_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(quantized_config, tmp_path_factory.mktemp("quantized")) as running:
        yield running


@pytest.fixture(scope="session")
def embedded_directory() -> Path:
    """The server's directory of the embedded model."""
    cache = os.environ.get("TILLER_CACHE_DIRECTORY", Settings.model_fields["cache_directory"].default)
    return resolve("embedded", Path(cache).expanduser())


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory, embedded_directory: Path) -> dict:
    """A model that loads quickly: random weights, with the embedded model's tokenizer."""
    directory = tmp_path_factory.mktemp("tiny")
    make_model("llama", vocab_size=49152, max_position_embeddings=100_000).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_bytes((embedded_directory / name).read_bytes())
    return {"model": {"name": MODEL, "source": str(directory)}, "engine": {"kv_cache_gib": 0.1}}


@pytest.fixture(scope="session")
def tiny_server(tiny_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as `make serve` starts it, without access tokens, but with the tiny model."""
    with serving(tiny_config, tmp_path_factory.mktemp("tiny-server")) as running:
        yield running


def metric(server: Server, name: str) -> float:
    """The sum over the samples with this name, whatever their labels."""
    samples = [line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines()]
    values = [float(value) for sample, value in samples if sample.partition("{")[0] == name]
    assert values, f"there is no metric {name}"
    return sum(values)


def worker_of(server: Server) -> int:
    [worker] = psutil.Process(server.process.pid).children()
    return worker.pid


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pid: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < deadline, "the process still runs"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def reference_model(embedded_directory: Path) -> PreTrainedModel:
    """The embedded model in plain transformers."""
    return AutoModelForCausalLM.from_pretrained(embedded_directory, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def reference_tokenizer(embedded_directory: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(embedded_directory)
