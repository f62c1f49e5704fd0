"""Faults of workers and gateways: which requests fail, which go on, and which files remain."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.e2e.conftest import MODEL, Server, is_running, serving, wait_until_gone, worker_of
from tests.e2e.faulty_worker import FREEZE, HANG, KILL, NO_MEMORY, RAISE

CONCEPT = [{"positive": f"kind words {i}", "negative": f"rude noise {i}"} for i in range(4)]


def body(max_tokens: int, **fields: object) -> dict:
    messages = [{"role": "user", "content": "Hi"}]
    return {
        "model": MODEL,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "logit_bias": {"1": -100},
        **fields,
    }


def events(server: Server, max_tokens: int) -> Iterator[str]:
    """Yields the data of a streamed answer's events as they arrive."""
    with httpx.stream(
        "POST", f"{server.url}/chat/completions", json=body(max_tokens, stream=True), timeout=60
    ) as response:
        assert response.status_code == 200
        yield from (line.removeprefix("data: ") for line in response.iter_lines() if line)


def stream_to_the_end(server: Server, max_tokens: int) -> str:
    return list(events(server, max_tokens))[-1]


def content_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def probed(server: Server) -> dict[str, int]:
    """The status that each probe gets."""
    return {path: server.get(path).status_code for path in ("/live", "/ready", "/health")}


def wait_for_health(server: Server, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while server.get("/health").status_code != 200:
        assert time.monotonic() < deadline, "the server does not recover"
        time.sleep(0.1)


def files_left(directory: Path) -> list[str]:
    return [path.name for path in (directory / "tmp").iterdir()]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faulty")


@pytest.fixture(scope="module")
def server(tiny_config: dict, directory: Path) -> Iterator[Server]:
    config = {**tiny_config, "engine": {"kv_cache_gib": 0.1}}
    with serving(config, directory, "tests.e2e.faulty_server") as server:
        created = server.post("/steering_concepts", {"name": "kind", "examples": CONCEPT})
        assert created.status_code == 201, created.text
        yield server


@pytest.mark.parametrize("fault", [RAISE, NO_MEMORY])
def test_only_the_request_that_breaks_a_step_fails(server: Server, fault: int) -> None:
    def neighbour(number: int) -> str:
        return content_of(server.post("/chat/completions", body(100 + number)))

    alone = list(map(neighbour, range(4)))
    worker = worker_of(server)
    with ThreadPoolExecutor() as pool:
        neighbours = [pool.submit(neighbour, number) for number in range(4)]
        streamed = pool.submit(stream_to_the_end, server, fault)
        failed = server.post("/chat/completions", body(fault))
        assert (failed.status_code, failed.json()["code"]) == (500, "INTERNAL")
        assert json.loads(streamed.result())["code"] == "INTERNAL"
        assert [future.result() for future in neighbours] == alone
    assert server.get("/health").status_code == 200
    assert worker_of(server) == worker


@pytest.mark.parametrize("fault", [KILL, HANG, FREEZE])
def test_a_lost_worker_is_replaced(server: Server, directory: Path, fault: int) -> None:
    """Open requests fail in time. Afterwards the trained concept works as before."""
    steered = body(20, steering_concepts=["kind"])
    before = content_of(server.post("/chat/completions", steered))
    worker = worker_of(server)
    name = f"made-while-{fault}"  # Its training takes longer than this test.
    examples = [{"positive": f"{fault} {i}", "negative": f"no {i}"} for i in range(1000)]
    with ThreadPoolExecutor() as pool:
        streams = [pool.submit(stream_to_the_end, server, 90_000) for _ in range(3)]
        whole = pool.submit(server.post, "/chat/completions", body(90_000))
        creation = pool.submit(server.post, "/steering_concepts", {"name": name, "examples": examples})
        time.sleep(0.5)
        culprit, lost = "", 0.0
        for event in events(server, fault):
            lost = time.monotonic() if '"choices"' in event else lost
            culprit = event
        assert json.loads(culprit)["code"] == "UNAVAILABLE"
        for stream in streams:
            assert json.loads(stream.result())["code"] == "UNAVAILABLE"
        for future in (whole, creation):
            expect_unavailable(future)
        assert time.monotonic() - lost < 5
    assert probed(server) == {"/live": 200, "/ready": 503, "/health": 503}
    refused = server.post("/chat/completions", body(5))
    assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE")

    wait_for_health(server)
    assert not is_running(worker)
    assert is_running(worker_of(server))
    assert content_of(server.post("/chat/completions", steered)) == before
    wait_until_trained_again(server, name)
    assert server.delete(f"/steering_concepts/{name}").status_code == 204
    assert files_left(directory) == []


def wait_until_trained_again(server: Server, name: str) -> None:
    """The interrupted training starts again without a new request."""
    deadline = time.monotonic() + 30
    while (concept := server.get(f"/steering_concepts/{name}").json())["state"] == "untrained":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert concept["state"] == "training"


def expect_unavailable(future: "Future[httpx.Response]") -> None:
    response = future.result()
    assert (response.status_code, response.json()["code"]) == (503, "UNAVAILABLE")
    assert "Retry-After" in response.headers


def test_a_lost_replica_fails_only_its_own_requests_and_a_killed_gateway_leaves_nothing(
    tiny_config: dict, tmp_path: Path
) -> None:
    engine = {"kv_cache_gib": 0.1, "replicas": 2}
    with serving({**tiny_config, "engine": engine}, tmp_path) as server, ThreadPoolExecutor() as pool:
        first, _ = psutil.Process(server.process.pid).children()
        new = {"name": "kind", "examples": CONCEPT}
        assert server.post("/steering_concepts", new).status_code == 201

        steered = body(20, steering_concepts=["kind"])
        chats = [pool.submit(server.post, "/chat/completions", steered) for _ in range(6)]
        assert len({content_of(chat.result()) for chat in chats}) == 1

        streams = [events(server, 400) for _ in range(4)]
        for stream in streams:
            next(stream)
        first.kill()
        answers = [pool.submit(server.post, "/chat/completions", body(20)) for _ in range(4)]
        assert len({content_of(answer.result()) for answer in answers}) == 1
        assert server.get("/health").status_code == 200
        ends = [future.result()[-1] for future in [pool.submit(list, stream) for stream in streams]]
        assert sorted(end == "[DONE]" for end in ends) == [False, False, True, True]
        assert all(end == "[DONE]" or json.loads(end)["code"] == "UNAVAILABLE" for end in ends)

        workers = psutil.Process(server.process.pid).children()
        server.process.kill()
        for worker in workers:
            wait_until_gone(worker.pid, seconds=60)
    assert files_left(tmp_path) == []


def test_a_group_of_processes_is_replaced_as_a_whole_and_a_killed_gateway_leaves_nothing(
    tiny_config: dict, tmp_path: Path
) -> None:
    engine = {"kv_cache_gib": 0.1, "tensor_parallel": 2, "threads": 2}
    with serving({**tiny_config, "engine": engine}, tmp_path) as server, ThreadPoolExecutor() as pool:
        before = content_of(server.post("/chat/completions", body(20)))
        worker = worker_of(server)
        [follower] = psutil.Process(worker).children()
        stream = events(server, 90_000)
        next(stream)
        whole = pool.submit(server.post, "/chat/completions", body(90_000))
        time.sleep(0.3)
        follower.kill()
        lost = time.monotonic()
        assert json.loads(list(stream)[-1])["code"] == "UNAVAILABLE"
        expect_unavailable(whole)
        assert time.monotonic() - lost < 5
        wait_for_health(server, 180)
        assert not is_running(worker)
        assert content_of(server.post("/chat/completions", body(20))) == before
        processes = psutil.Process(server.process.pid).children(recursive=True)
        assert len(processes) == 2
        server.process.kill()
        for process in processes:
            wait_until_gone(process.pid)
    assert files_left(tmp_path) == []


def test_a_gateway_killed_during_its_start_leaves_nothing(tiny_config: dict, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**tiny_config, "data_directory": str(tmp_path)}))
    command = [sys.executable, "-m", "app.cli", "serve", "--config", str(config), "--port", "0"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}) as process:
        deadline = time.monotonic() + 60
        while not (workers := psutil.Process(process.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        assert files_left(tmp_path), "the gateway was killed too late for this test"
    wait_until_gone(workers[0].pid, seconds=60)
    assert files_left(tmp_path) == []


def test_after_a_signal_running_requests_may_finish_and_new_ones_are_refused(
    tiny_config: dict, tmp_path: Path
) -> None:
    with serving({**tiny_config, "server": {"drain_seconds": 4}}, tmp_path) as server:
        short, endless, unread = events(server, 40), events(server, 90_000), events(server, 90_000)
        for stream in (short, endless, unread):
            next(stream)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert probed(server) == {"/live": 200, "/ready": 503, "/health": 503}
        refused = server.post("/chat/completions", body(5))
        assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE")
        *chunks, last = short
        assert last == "[DONE]"
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
        assert json.loads(list(endless)[-1])["code"] == "UNAVAILABLE"
        assert server.process.wait(timeout=15) == 0
        unread.close()


def test_a_second_signal_ends_the_server_at_once(tiny_config: dict, tmp_path: Path) -> None:
    with serving({**tiny_config, "server": {"drain_seconds": 60}}, tmp_path) as server:
        worker = worker_of(server)
        stream = events(server, 90_000)
        next(stream)
        for _ in range(2):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert server.process.wait(timeout=15) == 0
        wait_until_gone(worker)
        with contextlib.suppress(httpx.HTTPError):
            stream.close()
    assert files_left(tmp_path) == []
