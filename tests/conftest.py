"""Where models compute: `TEST_DEVICE=cuda` has the oracle tests try what runs on a GPU.

And which tests may run at the same time: those of different files, but of e2e one file after another, since a
server with the real model has use for all cores.
"""

import os

import pytest

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which torch may do


def pytest_configure() -> None:
    if DEVICE != "cpu":
        import torch

        torch.set_default_device(DEVICE)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group("e2e" if item.path.parent.name == "e2e" else str(item.path)))
