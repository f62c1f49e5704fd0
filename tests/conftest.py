"""Where models compute: `TEST_DEVICE=cuda pytest -m gpu` has the oracle tests try what runs on a GPU.

And which tests may run at the same time: those of different files, but of e2e one file after another, since a
server with the real model has use for all cores.
"""

import os
from typing import Any

import pytest

E2E = "tests/e2e/"
CPU = "tests/inference/backends/cpu/"
GPU = "tests/inference/"
DEVICE = os.environ.get("TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which torch may do


def pytest_configure() -> None:
    if DEVICE != "cpu":
        import torch

        torch.set_default_device(DEVICE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that the other tests run beside it."""
    items.sort(key=lambda item: scope(item.nodeid) != E2E)
    for item in items:
        if item.nodeid.startswith(GPU) and not item.nodeid.startswith(CPU):
            item.add_marker("gpu")


@pytest.hookimpl(optionalhook=True)  # there may be no xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    return ByFile(config, log)


def scope(nodeid: str) -> str:
    """Tests of the same one run one after the other, in the same process."""
    file = nodeid.partition("::")[0]
    return E2E if file.startswith(E2E) else file
