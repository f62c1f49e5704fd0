"""Where models compute: `TEST_DEVICE=cuda` has the oracle tests try what runs on a GPU."""

import os

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which torch may do


def pytest_configure() -> None:
    if DEVICE != "cpu":
        import torch

        torch.set_default_device(DEVICE)
