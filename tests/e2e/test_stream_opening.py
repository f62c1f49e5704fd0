"""Streams whose prompt takes longer than `server.stream_open_seconds`, in real processes."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import MODEL, Server, metric, serving
from tests.e2e.test_disconnects import client, is_admitted, read_until, sequences

LONG = {"messages": [{"role": "user", "content": "word " * 30_000}]}
OPEN_SECONDS = 0.3
NARROW = {"kv_cache_gib": 0.1, "max_running": 1, "max_queued": 1, "max_batch_tokens": 32}


@pytest.fixture(scope="module")
def server(tiny_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {**tiny_config, "engine": NARROW, "server": {"stream_open_seconds": OPEN_SECONDS}}
    with serving(config, tmp_path_factory.mktemp("opening")) as server:
        yield server


def events(server: Server, **fields: object) -> Iterator[dict]:
    """Yields the events of a streamed answer as they arrive, without `[DONE]`."""
    body = {"model": MODEL, "stream": True, "max_tokens": 3, "logit_bias": {"1": -100}, **LONG, **fields}
    with httpx.stream("POST", f"{server.url}/chat/completions", json=body, timeout=120) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def opened(server: Server, **fields: object) -> Iterator[dict]:
    """The events of a stream that has begun and has no token yet."""
    stream = events(server, **fields)
    assert next(stream)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    return stream


def test_a_long_prompt_opens_its_stream_and_is_then_answered(server: Server) -> None:
    words = {"messages": [{"role": "user", "content": "word " * 12_000}]}
    began = time.monotonic()
    stream = opened(server, **words)
    seconds_to_open = time.monotonic() - began
    chunks = list(stream)
    assert OPEN_SECONDS <= seconds_to_open < (time.monotonic() - began) / 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert metric(server, "tiller_time_to_first_token_seconds_sum") > 2 * seconds_to_open


def test_a_client_that_leaves_an_opened_stream_frees_its_slot_within_a_second(server: Server) -> None:
    with client(server, stream=True, **LONG) as leaves, client(server, stream=True, **LONG):
        read_until(leaves, b'"content":""')
        assert not is_admitted(server), "both slots are taken"
        leaves.close()
        left = time.monotonic()
        while not is_admitted(server):
            assert time.monotonic() - left < 1.0
            time.sleep(0.02)
    while sequences(server):
        time.sleep(0.02)


def test_a_worker_that_is_lost_is_the_last_event_of_an_opened_stream(server: Server) -> None:
    stream = opened(server)
    [worker] = psutil.Process(server.process.pid).children()
    worker.kill()
    [last] = stream
    assert last["code"] == "UNAVAILABLE"
    assert last["error"]["type"] == "server_error"


def test_a_server_that_stops_ends_opened_streams_of_each_worker(tiny_config: dict, tmp_path: Path) -> None:
    settings = {"stream_open_seconds": OPEN_SECONDS, "drain_seconds": 1}
    config = {**tiny_config, "engine": {**NARROW, "replicas": 2}, "server": settings}
    with serving(config, tmp_path) as server:
        streams = [opened(server) for _ in range(2)]
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            assert [event["code"] for event in stream] == ["UNAVAILABLE"]
        assert server.process.wait(timeout=15) == 0
