"""Two servers, workers and a registry, each a process of its own, and what happens when one is lost."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import MODEL, Server, metric
from tests.e2e.standing import Cluster, answers, free_address, until

PAIRS = [{"positive": f"kind words {i}", "negative": f"rude noise {i}"} for i in range(4)]
pytestmark = pytest.mark.slow


class SharedCluster(Cluster):
    """Finds its workers through a registry."""

    def __init__(self, config: dict, directory: Path, stack: ExitStack) -> None:
        super().__init__(config, directory, stack)
        del self.config["model"]["workers"]
        self.config |= {
            "registry": free_address(),
            "data_directory": str(directory),
            "limits": {"max_requests": 8, "tokens_per_minute": 60_000},
        }

    def server(self, **config: object) -> Server:
        self._count += 1
        return super().server(data_directory=str(self._directory / f"server-{self._count}"), **config)

    def worker_elsewhere(self) -> subprocess.Popen[str]:
        """Starts a worker at another address."""
        self.address = free_address()
        return self.worker()


@pytest.fixture
def cluster(tiny_config: dict, tmp_path: Path) -> Iterator[SharedCluster]:
    with ExitStack() as stack:
        yield SharedCluster(tiny_config, tmp_path, stack)


def create(server: Server, name: str = "kind") -> httpx.Response:
    return server.post("/steering_concepts", {"name": name, "examples": PAIRS})


def test_servers_share_concepts_also_after_the_registry_was_killed(cluster: SharedCluster) -> None:
    registry = cluster.registry()
    cluster.worker()
    first, second = cluster.server(), cluster.server()
    made = create(first)
    assert made.status_code == 201, made.text
    steered = [
        server.chat("Hi", max_tokens=8, steering_concepts=["kind"])["choices"] for server in (first, second)
    ]
    assert steered[0] == steered[1]
    report = second.get("/steering_concepts/kind").json()["report"]
    assert report == made.json()["report"], "it was trained once"

    registry.kill()
    registry.wait()
    until(lambda: create(first, "other").status_code == 503)
    assert all(answers(server) for server in (first, second))
    assert second.chat("Hi", max_tokens=8, steering_concepts=["kind"])["choices"] == steered[0]
    cluster.registry()
    until(lambda: second.delete("/steering_concepts/kind").status_code == 204)
    assert first.get("/steering_concepts/kind").status_code == 404
    third = cluster.server()
    assert create(third, "other").status_code == 201
    assert first.get("/steering_concepts/other").status_code == 200


def test_servers_use_the_workers_that_come_and_go(cluster: SharedCluster) -> None:
    cluster.registry()
    worker = cluster.worker()
    first, second = cluster.server(), cluster.server()
    assert create(first).status_code == 201
    steered = second.chat("Hi", max_tokens=8, steering_concepts=["kind"])["choices"]
    worker.kill()
    worker.wait()
    until(lambda: not answers(first) and not answers(second))
    other = cluster.worker_elsewhere()
    until(lambda: answers(first) and answers(second))
    assert second.chat("Hi", max_tokens=8, steering_concepts=["kind"])["choices"] == steered
    third = cluster.worker_elsewhere()
    until(lambda: metric(first, "tiller_worker_up") == metric(second, "tiller_worker_up") == 2)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(first.chat, f"Go {n}", max_tokens=300, ignore_eos=True) for n in range(4)]
        until(lambda: metric(first, "tiller_sequences_running") == 4)
        other.terminate()
        assert all(each.result()["choices"][0]["finish_reason"] == "length" for each in running)
    assert other.wait(20) == 0
    until(lambda: metric(first, "tiller_worker_up") == metric(second, "tiller_worker_up") == 1)
    assert third.poll() is None
    assert answers(first)
    assert answers(second)


def test_a_limit_counts_on_all_servers(cluster: SharedCluster) -> None:
    cluster.registry()
    cluster.worker()
    limits = {"max_requests": 2}
    first, second = cluster.server(limits=limits), cluster.server(limits=limits)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400}
    with ThreadPoolExecutor(6) as pool:
        servers = (first, second) * 3
        asked = [pool.submit(server.post, "/chat/completions", body) for server in servers]
        codes = sorted(each.result().status_code for each in asked)
    assert codes == [200, 200, 429, 429, 429, 429]
    second.process.kill()
    until(lambda: answers(first))


def test_a_worker_must_say_where_it_is_reached(cluster: SharedCluster) -> None:
    cluster.address = "tcp://0.0.0.0:" + cluster.address.rpartition(":")[2]
    worker = cluster.worker()
    assert worker.stderr is not None
    [line] = worker.stderr.read().splitlines()
    assert "--advertise must say at which address servers reach the worker" in line
