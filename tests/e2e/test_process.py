"""Starting and stopping: what an operator sees, and that nothing is left behind."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.conftest import MODEL, TOKEN, serving, wait_until_gone, worker_of


def serve(directory: Path, config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tiller serve` that is expected to end by itself."""
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
    expect_one_line(serve(tmp_path, "engine: {block_sise: 16}"), 2, "engine.block_sise is no setting")


def test_a_missing_model_directory_is_one_line(tmp_path: Path) -> None:
    ended = serve(tmp_path, "model: {source: /no/such/model}", "--port", "0")
    expect_one_line(ended, 1, "model directory /no/such/model does not exist")


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expect_one_line(serve(tmp_path, "", "--port", str(port)), 1, f"127.0.0.1:{port}: Address already")


def test_it_does_not_open_itself_to_the_network_without_tokens(tmp_path: Path) -> None:
    expect_one_line(serve(tmp_path, "", "--host", "0.0.0.0"), 2, "tiller token new")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(tiny_config: dict, tmp_path: Path, number: signal.Signals) -> None:
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


def test_a_token_made_by_the_command_opens_the_door(tiny_config: dict, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "app.cli", "token", "new", "someone"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    token = made.split("Token: ")[1].split()[0]
    digest = made.split("sha256: ")[1].split()[0]
    config = {**tiny_config, "auth": {"tokens": [{"name": "someone", "sha256": digest}]}}
    with serving(config, tmp_path) as server:
        models = f"{server.url}/models"
        assert httpx.get(models, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert httpx.get(models, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 401
        assert httpx.get(models).status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_the_quick_start_answers(embedded_config: dict, tmp_path: Path) -> None:
    """With int8 weights, as configs/quickstart.yaml has it, alone and in company."""
    quick_start = yaml.safe_load(Path("configs/quickstart.yaml").read_text())
    assert quick_start["engine"]["quantization"] == "int8"
    with serving({**embedded_config, "engine": quick_start["engine"]}, tmp_path) as server:
        questions = ["What is the capital of France?", "Name a primary color.", "Say hello."]
        alone = [server.chat(question, max_tokens=24) for question in questions]
        with ThreadPoolExecutor() as pool:
            together = list(pool.map(lambda question: server.chat(question, max_tokens=24), questions))
        contents = [answer["choices"][0]["message"]["content"] for answer in alone]
        assert "Paris" in contents[0]
        assert [answer["choices"][0]["message"]["content"] for answer in together] == contents
