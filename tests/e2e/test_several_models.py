"""Two models behind one server, with real workers: one that chats, and one without a chat template."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Server, serving
from tests.inference.conftest import make_model

CHATS, COMPLETES = "llama-3.1-8b-instruct", "luminous-base"
MESSAGES = [{"role": "user", "content": "Hi"}]
PAIRS = [{"positive": f"kind words {i}", "negative": f"rude noise {i}"} for i in range(4)]


@pytest.fixture(scope="module")
def server(
    tiny_config: dict, embedded_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("base")
    make_model("qwen3", vocab_size=49152, max_position_embeddings=256).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((embedded_directory / name).read_bytes())
    models = [
        {"name": CHATS, "source": tiny_config["model"]["source"]},
        {"name": COMPLETES, "source": str(directory), "engine": {"dtype": "bfloat16"}},
    ]
    config = {"models": models, "engine": tiny_config["engine"]}
    with serving(config, tmp_path_factory.mktemp("several")) as running:
        for model in (CHATS, COMPLETES):
            wait_for(running, model)
        yield running


def status_of(server: Server, model: str) -> str | None:
    found = {each["name"]: each["status"] for each in server.get("/model-settings").json()}
    return found.get(model)


def wait_for(server: Server, model: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while status_of(server, model) != "available":
        assert time.monotonic() < deadline, f"{model} does not serve"
        time.sleep(0.1)


def test_each_model_has_its_own_truth(server: Server) -> None:
    assert server.chat("Hi", model=CHATS, max_tokens=2)["model"] == CHATS
    refused = server.post("/chat/completions", {"model": COMPLETES, "messages": MESSAGES})
    assert (refused.status_code, refused.json()["code"]) == (400, "MISSING_CAPABILITY")
    listed = server.get("/models_available").json()
    facts = {each["name"]: (each["aligned"], each["max_context_size"]) for each in listed}
    assert facts[CHATS][0]
    assert facts[COMPLETES] == (False, 256)


def test_a_concept_is_trained_on_the_model_that_can_be_steered(server: Server) -> None:
    made = server.post("/steering_concepts", {"name": "kind", "examples": PAIRS})
    assert made.status_code == 201, made.text
    assert {name: each["state"] for name, each in made.json()["models"].items()} == {
        CHATS: "ready",
        COMPLETES: "failed",
    }
    steered = server.chat("Hi", model=CHATS, max_tokens=4, steering_concepts=["kind"])
    assert steered["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_lost_worker_concerns_only_its_model(server: Server, number: int) -> None:
    os.kill(psutil.Process(server.process.pid).children()[number].pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not (down := [name for name in (CHATS, COMPLETES) if status_of(server, name) == "unavailable"]):
        assert time.monotonic() < deadline, "no model is down"
    assert len(down) == 1
    assert server.get("/health").status_code == 200
    answer = server.post("/chat/completions", {"model": CHATS, "messages": MESSAGES, "max_tokens": 2})
    assert answer.status_code == (503 if down == [CHATS] else 200)
    wait_for(server, down[0])
    assert server.chat("Hi", model=CHATS, max_tokens=2)["model"] == CHATS
