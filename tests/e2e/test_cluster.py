"""`tiller cluster` on three Ray nodes on this host: what is killed ends, everything else goes on.

All processes are real. The tests share one cluster, so each leaves it serving.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from inference.interface.worker_key import create_key
from tests.e2e.conftest import MODEL, is_running, wait_until_gone

pytest.importorskip("ray", reason="needs Ray: pip install '.[cluster]'")

from benchmarks.chaos_cluster.loopback import LoopbackCluster, loopback_cluster, process_at

pytestmark = pytest.mark.skipif(not os.environ.get("TEST_CLUSTER"), reason="make cluster-test runs it")
PAIRS = [{"positive": f"kind words {i}", "negative": f"rude noise {i}"} for i in range(4)]
CLEAR_SECONDS = 5.0
SERVED_SECONDS = 60.0


@pytest.fixture(scope="module")
def cluster(tiny_config: dict) -> Iterator[LoopbackCluster]:
    settings = {
        "model": {**tiny_config["model"], "scale": {"min": 2}},
        "engine": {**tiny_config["engine"], "threads": 1},
        "steering": {"train_at_start": False, "questions": 2},
        "cluster": {"gateways": 2},
        "cache_directory": os.environ.get("TILLER_CACHE_DIRECTORY", "~/.cache/tiller"),
    }
    with loopback_cluster(settings) as started:
        started.up()
        yield started


def urls(cluster: LoopbackCluster) -> list[str]:
    return [gateway["address"] for gateway in cluster.status()["gateways"]]


def workers(cluster: LoopbackCluster, model: int = 0) -> list[dict]:
    return cluster.status()["models"][model]["workers"]


def ask(url: str, content: str = "Hi", model: str = MODEL, **fields: object) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 16, **fields}
    return httpx.post(f"{url}/chat/completions", json=body, timeout=60)


def text(url: str, content: str = "Hi", **fields: object) -> str:
    response = ask(url, content, **fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@dataclass
class Stream:
    """A long answer that is being streamed."""

    url: str
    first: threading.Event = field(default_factory=threading.Event)
    ended: float = 0.0
    last: str = ""

    def run(self) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1000}
        options = {"json": {**body, "stream": True, "ignore_eos": True}, "timeout": 60}
        try:
            with httpx.stream("POST", f"{self.url}/chat/completions", **options) as response:
                for line in response.iter_lines():
                    self.last = line or self.last
                    self.first.set()
        except httpx.TransportError as error:
            self.last = type(error).__name__
        self.ended = time.monotonic()

    @property
    def fate(self) -> str:
        """How it has ended: "[DONE]", an error code, or a broken connection."""
        found = self.last.removeprefix("data: ")
        return json.loads(found)["code"] if found.startswith("{") else found


def fates_after(cluster_urls: list[str], kill: object) -> list[str]:
    """How two long streams of each gateway end if something is killed meanwhile.

    One stream of a gateway goes to each worker. Those that do not finish must end soon.
    """
    streams = [Stream(url) for url in cluster_urls for _ in range(2)]
    with ThreadPoolExecutor(len(streams)) as pool:
        running = [pool.submit(stream.run) for stream in streams]
        assert all(stream.first.wait(30) for stream in streams)
        began = time.monotonic()
        kill()
        for task in running:
            task.result()
    broken = [stream for stream in streams if stream.fate != "[DONE]"]
    assert all(stream.ended - began < CLEAR_SECONDS for stream in broken), [s.ended - began for s in broken]
    return sorted(stream.fate for stream in streams)


def test_all_gateways_serve_with_all_workers_on_different_nodes(cluster: LoopbackCluster) -> None:
    first, second = urls(cluster)
    assert first != second
    assert text(first) == text(second)
    status = cluster.status()
    assert [node["is_head"] for node in status["nodes"]].count(True) == 1
    assert len(status["nodes"]) == 3
    assert len({gateway["node"] for gateway in status["gateways"]}) == 2


def test_up_again_changes_nothing(cluster: LoopbackCluster) -> None:
    before = cluster.status()
    pids = [process_at(worker["address"]).pid for worker in workers(cluster)]
    assert sorted(cluster.up()) == sorted(urls(cluster))
    assert cluster.status() == before
    assert [process_at(worker["address"]).pid for worker in workers(cluster)] == pids


def test_the_processes_of_ray_do_not_import_torch(cluster: LoopbackCluster) -> None:
    actors = [process_at(each["address"]).parent() for each in workers(cluster)]
    for actor in actors:
        assert "libtorch" not in "".join(map_.path for map_ in actor.memory_maps())


@pytest.mark.parametrize("what", ["process", "actor"])
def test_a_killed_worker_ends_its_own_requests_only(cluster: LoopbackCluster, what: str) -> None:
    right = text(urls(cluster)[0])
    child = process_at(workers(cluster)[0]["address"])
    victim = child if what == "process" else child.parent()
    assert fates_after(urls(cluster), victim.kill) == ["UNAVAILABLE", "UNAVAILABLE", "[DONE]", "[DONE]"]
    wait_until_gone(child.pid)
    assert {text(url) for url in urls(cluster)} == {right}
    cluster.wait_until_served(SERVED_SECONDS)


def test_a_killed_gateway_ends_its_own_requests_only(cluster: LoopbackCluster) -> None:
    first, second = urls(cluster)
    fates = fates_after([first, second], process_at(first).kill)
    assert fates[2:] == ["[DONE]", "[DONE]"]
    assert set(fates[:2]) == {"RemoteProtocolError"}
    assert text(second)
    cluster.wait_until_served(SERVED_SECONDS)
    assert text(first)


@pytest.mark.parametrize("what", ["process", "actor"])
def test_a_killed_registry_ends_no_request_and_keeps_the_concepts(
    cluster: LoopbackCluster, what: str
) -> None:
    first, second = urls(cluster)
    made = httpx.post(
        f"{first}/steering_concepts", json={"name": f"kind-{what}", "examples": PAIRS}, timeout=60
    )
    assert made.status_code == 201, made.text
    steered = text(second, steering_concepts=[f"kind-{what}"])
    child = process_at(cluster.status()["registry_address"])
    victim = child if what == "process" else child.parent()
    assert fates_after([first, second], victim.kill) == ["[DONE]"] * 4
    assert text(first)
    cluster.wait_until_served(SERVED_SECONDS)
    assert {text(url, steering_concepts=[f"kind-{what}"]) for url in (first, second)} == {steered}


def test_a_killed_node_ends_only_what_ran_there(cluster: LoopbackCluster) -> None:
    status = cluster.status()
    used = [member["node"] for member in (*workers(cluster), *status["gateways"])]
    lost = max(set(used) - {cluster.hosts[0]}, key=used.count)
    survivors = [gateway["address"] for gateway in status["gateways"] if gateway["node"] != lost]
    right = text(survivors[0])
    remaining = [worker for worker in workers(cluster) if worker["node"] != lost]
    fates = fates_after(survivors, lambda: cluster.kill_node(lost))
    assert fates.count("[DONE]") >= len(survivors) * len(remaining)
    assert set(fates) <= {"[DONE]", "UNAVAILABLE"}
    if remaining:
        assert text(survivors[0]) == right
    cluster.wait_until_served(SERVED_SECONDS)
    assert {text(url) for url in urls(cluster)} == {right}
    cluster.add_node(lost)


def test_a_killed_controller_goes_on_with_what_there_is(cluster: LoopbackCluster) -> None:
    before = sorted(worker["address"] for worker in workers(cluster))
    [controller] = [each for each in psutil.process_iter() if "_NodeController" in _title(each)]
    controller.kill()
    cluster.wait_until_served(SERVED_SECONDS)
    assert sorted(worker["address"] for worker in workers(cluster)) == before


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0] if process.cmdline() else ""
    except psutil.Error:
        return ""


def test_scale_adds_a_worker_and_removes_one_after_its_requests(cluster: LoopbackCluster) -> None:
    assert cluster.tiller("scale", MODEL, "3").returncode == 0
    cluster.wait_until_served(SERVED_SECONDS)
    third = max(workers(cluster), key=lambda worker: worker["number"])
    process = process_at(third["address"])
    streams = [Stream(urls(cluster)[0]) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(stream.run) for stream in streams]
        assert all(stream.first.wait(30) for stream in streams)
        assert cluster.tiller("scale", MODEL, "2").returncode == 0
        for task in running:
            task.result()
    assert [stream.fate for stream in streams] == ["[DONE]"] * 3
    wait_until_gone(process.pid, 30)
    assert (
        cluster.tiller("scale", "nothing", "2").stderr
        == f"tiller: there is no model nothing; there are: {MODEL}\n"
    )


@pytest.fixture
def changing(cluster: LoopbackCluster) -> Iterator[LoopbackCluster]:
    """A cluster whose configuration the test changes."""
    before = dict(cluster.config)
    yield cluster
    cluster.config = before
    cluster.up()
    assert [model["name"] for model in cluster.status()["models"]] == [MODEL]


def test_bad_models_are_one_line_each_and_the_others_go_on(changing: LoopbackCluster) -> None:
    """`up` replaces the gateways, and keeps the workers of the model that is the same.

    Each node has a free processor, so the model without files is tried on all of them.
    """
    cluster = changing
    pids = {process_at(worker["address"]).pid for worker in workers(cluster)}
    good = cluster.config.pop("model")
    cluster.config["models"] = [
        good,
        {"name": "missing", "source": "/nowhere/model"},
        {"name": "large", "source": good["source"], "engine": {"threads": 64}},
    ]
    done = cluster.tiller("up", "--timeout", "90")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    final = [line for line in lines if line.startswith("tiller: ")]
    for host in cluster.hosts:
        assert any(
            f"missing does not run on {host}" in line and "/nowhere/model" in line for line in final
        ), final
    assert any("needs 64 CPUs on one node; the largest node has 3" in line for line in final), final
    assert {process_at(worker["address"]).pid for worker in workers(cluster)} == pids
    assert all(text(url) for url in urls(cluster))


def test_the_number_of_workers_follows_the_load(changing: LoopbackCluster) -> None:
    """Two workers compute two requests each. While more wait, a third worker joins; afterwards it goes."""
    cluster = changing
    for section, change in {
        "model": {"scale": {"min": 2, "max": 3}},
        "engine": {"max_running": 2},
        "cluster": {"grow_after_seconds": 1, "shrink_after_seconds": 2},
    }.items():
        cluster.config[section] = {**cluster.config[section], **change}
    addresses = cluster.up()
    enough = threading.Event()

    def load(url: str) -> set[str]:
        fates = set()
        while not enough.is_set():
            stream = Stream(url)
            stream.run()
            fates.add(stream.fate)
        return fates

    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(load, url) for url in addresses for _ in range(6)]
        try:
            wait_for(lambda: states(cluster) == ["serving"] * 3)
        finally:
            enough.set()
        assert {fate for task in running for fate in task.result()} == {"[DONE]"}
    wait_for(lambda: states(cluster) == ["serving"] * 2)


def states(cluster: LoopbackCluster) -> list[str]:
    return [worker["state"] for worker in workers(cluster)]


def wait_for(condition: Callable[[], bool], seconds: float = SERVED_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_changed_worker_key_replaces_all_processes(cluster: LoopbackCluster) -> None:
    right = text(urls(cluster)[0])
    pids = {process_at(each["address"]).pid for each in members(cluster)}
    new = Path(cluster.config["worker_key"]).with_name("new-key")
    create_key(new)
    cluster.config["worker_key"] = str(new)
    assert {text(url) for url in cluster.up()} == {right}
    assert pids.isdisjoint(process_at(each["address"]).pid for each in members(cluster))


def members(cluster: LoopbackCluster) -> list[dict]:
    status = cluster.status()
    return [*workers(cluster), *status["gateways"], *status["registry"]]


def test_a_wrong_ray_token_is_refused_in_one_line(cluster: LoopbackCluster) -> None:
    right = cluster.environment.pop("RAY_AUTH_TOKEN_PATH")
    try:
        cluster.environment["RAY_AUTH_TOKEN"] = "ab" * 32
        done = cluster.tiller("status")
        assert "refuses this host's Ray token" in done.stderr
        assert done.stderr.count("\n") == 1
    finally:
        del cluster.environment["RAY_AUTH_TOKEN"]
        cluster.environment["RAY_AUTH_TOKEN_PATH"] = right


def test_down_leaves_no_process(cluster: LoopbackCluster) -> None:
    pids = [process_at(each["address"]).pid for each in members(cluster)]
    assert cluster.tiller("down").returncode == 0
    assert not any(map(is_running, pids))
    assert "Tiller does not run on this Ray cluster" in cluster.tiller("status").stderr
