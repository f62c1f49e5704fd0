"""Workers that were started on their own, at tcp:// with a key, and servers that connect to them."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import yaml

from inference.interface.worker_key import create_key
from tests.e2e.conftest import MODEL, metric
from tests.e2e.standing import Cluster, answers, free_address, until

PAIRS = [{"positive": f"kind words {i}", "negative": f"rude noise {i}"} for i in range(4)]


@pytest.fixture
def cluster(tiny_config: dict, tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tiny_config, tmp_path, stack)


def test_two_servers_share_a_worker(cluster: Cluster) -> None:
    """Each gets only its own answers, and goes on when the other one is killed."""
    cluster.worker()
    first, second = cluster.server(), cluster.server()
    alone = {text: first.chat(text, max_tokens=16) for text in ("One", "Two")}
    with ThreadPoolExecutor(8) as pool:
        jobs = [(server, text) for server in (first, second) for text in ("One", "Two")] * 4
        found = pool.map(lambda job: job[0].chat(job[1], max_tokens=16), jobs)
        for (_, text), answer in zip(jobs, found, strict=True):
            assert answer["choices"] == alone[text]["choices"]
    lost = threading.Thread(target=_ignoring_errors(lambda: second.chat("Long", max_tokens=20_000)))
    lost.start()
    until(lambda: metric(first, "tiller_sequences_running") == 1)
    second.process.kill()
    lost.join()
    until(lambda: metric(first, "tiller_sequences_running") == 0, 15)
    assert first.chat("One", max_tokens=16)["choices"] == alone["One"]["choices"]


def _ignoring_errors(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with suppress(httpx.HTTPError):
            call()

    return run


def test_a_concept_of_one_server_is_known_to_the_worker_of_both(cluster: Cluster) -> None:
    """The second server trains it as well, and gets what the worker has trained already."""
    cluster.worker()
    first, second = cluster.server(), cluster.server()
    made = first.post("/steering_concepts", {"name": "kind", "examples": PAIRS})
    assert made.status_code == 201, made.text
    again = second.post("/steering_concepts", {"name": "friendly", "examples": PAIRS})
    assert again.json()["report"] == made.json()["report"]
    steered = [
        server.chat("Hi", max_tokens=8, steering_concepts=[name])["choices"]
        for server, name in ((first, "kind"), (second, "friendly"))
    ]
    assert steered[0] == steered[1]


def test_a_direction_travels_to_a_worker_with_another_cache(cluster: Cluster, tmp_path: Path) -> None:
    cluster.worker()
    second = free_address()
    model = {**cluster.config["model"], "workers": [cluster.address, second]}
    server = cluster.server(model=model)
    made = server.post("/steering_concepts", {"name": "kind", "examples": PAIRS})
    assert made.status_code == 201, made.text
    steered = server.chat("Hi", max_tokens=8, steering_concepts=["kind"])["choices"]
    cluster.address = second
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(Path(cluster.config["cache_directory"]).expanduser() / "kernels")
    cluster.worker(cache_directory=str(cache), engine={"kv_cache_gib": 0.1, "threads": 1})
    until(lambda: metric(server, "tiller_worker_up") == 2)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.chat, "Hi", max_tokens=8, steering_concepts=["kind"]) for _ in range(16)]
    assert all(answer.result()["choices"] == steered for answer in asked)
    assert list((cache / "steering").rglob("*.safetensors"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_ends_its_requests_within_seconds(cluster: Cluster, number: int) -> None:
    """The same server serves again once a worker is back at the address."""
    worker = cluster.worker()
    server = cluster.server()
    assert answers(server)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 20_000,
        "stream": True,
    }
    with httpx.stream("POST", server.url + "/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        begin = time.monotonic()
        worker.send_signal(number)
        rest = [line for line in lines if line]
        assert time.monotonic() - begin < 8
    assert json.loads(rest[-1].removeprefix("data: "))["code"] == "UNAVAILABLE"
    assert not answers(server)
    assert server.get("/live").status_code == 200
    worker.kill()
    worker.wait()
    cluster.worker()
    until(lambda: answers(server))


def test_a_worker_that_is_stopped_finishes_its_answers(cluster: Cluster) -> None:
    worker = cluster.worker(server={"drain_seconds": 60})
    server = cluster.server()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.chat, "Hi", max_tokens=2000, ignore_eos=True)
        until(lambda: metric(server, "tiller_sequences_running") == 1)
        worker.terminate()
        until(lambda: not answers(server))
        assert not running.done()
        assert running.result()["choices"][0]["finish_reason"] == "length"
    assert worker.wait(10) == 0


def test_another_key_or_version_is_refused_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.worker()
    server = cluster.server()
    create_key(tmp_path / "other")
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump({**cluster.config, "worker_key": str(tmp_path / "other")}))
    refused = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve", "--config", str(file), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert refused.stderr is not None
    assert "server and worker need the same worker key" in refused.stderr.readline()
    refused.terminate()
    refused.wait(30)
    refused.stderr.close()
    assert answers(server)
    assert worker.poll() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worker_key": None}, "worker_key must be set"),
        ({"worker_key": "/none"}, "the worker key /none cannot be read"),
        ({"model": {"name": MODEL, "source": "/none"}}, "/none"),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(
    cluster: Cluster, change: dict, message: str
) -> None:
    worker = cluster.worker(**change)
    assert worker.stderr is not None
    [line] = worker.stderr.read().splitlines()
    assert message in line
    assert worker.wait() in (1, 2)


def test_an_address_in_use_is_one_line(cluster: Cluster) -> None:
    host, _, port = cluster.address.removeprefix("tcp://").partition(":")
    with socket.create_server((host, int(port))):
        worker = cluster.worker()
        assert worker.stderr is not None
        [line] = worker.stderr.read().splitlines()
    assert f"{cluster.address}: Address already in use" in line
