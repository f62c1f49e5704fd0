"""Start and stop of a server: what an operator sees, and that no process remains."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.conftest import MODEL, TOKEN, Server, serving, wait_until_gone, worker_of


def serve(directory: Path, config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a `tiller serve` that should end by itself."""
    file = directory / "config.yaml"
    file.write_text(config)
    command = [sys.executable, "-m", "app.cli", "serve", "--config", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def expect_one_line(ended: subprocess.CompletedProcess[str], status: int, text: str) -> None:
    assert ended.returncode == status
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_an_unknown_key_is_one_line(tmp_path: Path) -> None:
    expect_one_line(serve(tmp_path, "engine: {block_sise: 16}"), 2, "engine.block_sise is not a setting")


def test_a_missing_model_directory_is_one_line(tmp_path: Path) -> None:
    ended = serve(tmp_path, "model: {source: /no/such/model}", "--port", "0")
    expect_one_line(ended, 2, "model.source: model directory /no/such/model does not exist")


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expect_one_line(serve(tmp_path, "", "--port", str(port)), 1, f"127.0.0.1:{port}: Address already")


def test_without_access_tokens_it_refuses_to_listen_on_the_network(tmp_path: Path) -> None:
    expect_one_line(serve(tmp_path, "", "--host", "0.0.0.0"), 2, "tiller token new")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_server_and_worker(tiny_config: dict, tmp_path: Path, number: signal.Signals) -> None:
    with serving(tiny_config, tmp_path) as server:
        worker = worker_of(server)
        assert server.chat("Hello", max_tokens=3)["usage"]["completion_tokens"] == 3
        server.process.send_signal(number)
        assert server.process.wait(timeout=20) == 0
        wait_until_gone(worker)


def test_a_context_can_be_filled_to_the_last_token_and_no_further(tiny_config: dict, tmp_path: Path) -> None:
    config = {**tiny_config, "engine": {"context_length": 200, "block_size": 8, "kv_cache_gib": 0.1}}
    with serving(config, tmp_path) as server:
        prompt = server.chat("word " * 100, max_tokens=1)["usage"]["prompt_tokens"]
        for max_tokens in ({"max_tokens": 200 - prompt}, {}):
            answer = server.chat("word " * 100, **max_tokens, logit_bias={"1": -100, "2": -100})
            assert answer["usage"]["total_tokens"] == 200
            assert answer["choices"][0]["finish_reason"] == "length"
        messages = [{"role": "user", "content": "word " * 100}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 201 - prompt}
        refused = server.post("/chat/completions", body)
        assert (refused.status_code, refused.json()["code"]) == (400, "CONTEXT_LENGTH_EXCEEDED")
        assert str(prompt) in refused.json()["error"]["message"]
        assert "200" in refused.json()["error"]["message"]


def tiller_token(directory: Path, *words: str) -> str:
    command = [sys.executable, "-m", "app.cli", "token", *words, "--config", str(directory / "config.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_access_token_works_until_it_is_revoked(tiny_config: dict, tmp_path: Path) -> None:
    with serving(tiny_config, tmp_path) as server:

        def status(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return httpx.get(f"{server.url}/models", headers=headers).status_code

        assert status("anything") == 200
        token = tiller_token(tmp_path, "new", "someone").splitlines()[0].removeprefix("Token: ")
        assert [status(token), status(TOKEN)] == [200, 401]
        tiller_token(tmp_path, "revoke", "someone")
        assert status(token) == 401
        assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.fixture(scope="module")
def small_server(tiny_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in which two choices may run and two may wait."""
    engine = {**tiny_config["engine"], "max_running": 2, "max_queued": 2}
    with serving({**tiny_config, "engine": engine}, tmp_path_factory.mktemp("small")) as server:
        yield server


def test_endless_headers_are_refused_and_other_requests_go_on(small_server: Server) -> None:
    with socket.socket() as endless:
        endless.connect(("127.0.0.1", int(small_server.url.rpartition(":")[2])))
        endless.sendall(b"GET /models HTTP/1.1\r\nX-Endless: " + b"x" * 2**20)
        assert small_server.get("/models").status_code == 200
        answer = endless.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "HEADERS_TOO_LARGE"


def test_a_full_queue_refuses_at_once_and_admitted_requests_finish(small_server: Server) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 150,
        "logit_bias": {"1": -100, "2": -100},
    }
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: small_server.post("/chat/completions", body), range(40)))
    assert small_server.chat("Hello", max_tokens=3)["usage"]["completion_tokens"] == 3
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(served) >= 4
    assert refused
    assert {answer.json()["usage"]["completion_tokens"] for answer in served} == {150}
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(503, "QUEUE_FULL")}
    assert all(answer.headers["Retry-After"] for answer in refused)


def test_the_quick_start_answers(embedded_config: dict, tmp_path: Path) -> None:
    """With `integer` quantization, as in configs/quickstart.yaml. Requests run alone and together."""
    quick_start = yaml.safe_load(Path("configs/quickstart.yaml").read_text())
    assert quick_start["engine"]["quantization"] == "integer"
    engine = {**quick_start["engine"], "threads": None}
    with serving({**embedded_config, "engine": engine}, tmp_path) as server:
        questions = ["What is the capital of Japan?", "Name a primary color.", "Say hello."]
        alone = [server.chat(question, max_tokens=24) for question in questions]
        with ThreadPoolExecutor() as pool:
            together = list(pool.map(lambda question: server.chat(question, max_tokens=24), questions))
        contents = [answer["choices"][0]["message"]["content"] for answer in alone]
        assert "Tokyo" in contents[0]
        assert [answer["choices"][0]["message"]["content"] for answer in together] == contents
