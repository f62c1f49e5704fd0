"""Chooses the device, and the tests that may run at the same time.

`TEST_DEVICE=cuda pytest -m gpu` runs the oracle tests on a GPU. Tests of different files may run in parallel.
The files of tests/e2e run one after another, since a server with the real model uses all cores.
"""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

E2E = "tests/e2e/"
CPU = "tests/inference/backends/cpu/"
GPU = "tests/inference/"
SLOW = (
    # The embedded model, in real servers.
    E2E,
    "tests/benchmarks/test_peers.py",
    # Other real processes: workers, commands, compilers, installations.
    "tests/app/cluster/test_keeper.py",
    "tests/app/commands/chat/test_conversation.py",
    "tests/app/commands/test_documentation.py",
    "tests/app/contract/test_worker.py",
    "tests/app/http/test_tls.py",
    "tests/app/test_cli.py",
    "tests/app/workers/test_replicas.py",
    "tests/app/workers/test_supervisor.py",
    "tests/inference/backends/cpu/test_instructions.py",
    "tests/inference/backends/cpu/test_shipped.py",
    "tests/inference/backends/cuda/test_compilation.py",
    "tests/inference/models/test_hub.py",
    "tests/inference/test_heartbeat.py",
    "tests/inference/tensor_parallel/test_exactness.py",
    "tests/inference/tensor_parallel/test_faults.py",
    "tests/inference/tensor_parallel/test_models.py",
    "tests/inference/tensor_parallel/test_recovery.py",
    "tests/inference/test_worker.py",
    "tests/test_compose.py",
    "tests/test_dockerfile.py",
    "tests/test_installation.py",
    "tests/kubernetes/",
    "tests/test_site.py",
    # Kernels in Triton's interpreter, generated requests, and clients that wait.
    "tests/app/http/test_connection.py",
    "tests/app/http/test_malformed_http.py",
    "tests/app/http/test_stalls.py",
    "tests/app/test_schemathesis.py",
    "tests/benchmarks/test_gpu.py",
    "tests/inference/backends/cuda/test_fp8.py",
    "tests/inference/backends/cuda/test_fp8_compilation.py",
    "tests/inference/backends/cuda/test_fusion.py",
    "tests/inference/backends/cuda/test_paged_attention.py",
    "tests/inference/steering/test_serving.py",
)
"""Folders and files that `make test-fast` leaves out."""
DEVICE = os.environ.get("TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, and torch may import Triton


def pytest_configure() -> None:
    if DEVICE != "cpu":
        import torch

        torch.set_default_device(DEVICE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests. Puts the longest, tests/e2e, first, so that the others run in parallel with them."""
    items.sort(key=lambda item: scope(item.nodeid) != E2E)
    for item in items:
        if item.nodeid.startswith(GPU) and not item.nodeid.startswith(CPU):
            item.add_marker("gpu")
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")


@pytest.hookimpl(optionalhook=True)  # xdist may be missing
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    return ByFile(config, log)


def scope(nodeid: str) -> str:
    """Tests with the same scope run one after another, in the same process."""
    file = nodeid.partition("::")[0]
    return E2E if file.startswith(E2E) else file


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also in a process that a shell has started in the background.

    Such a process ignores SIGINT from its start on. Afterwards the handler of before is back.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
