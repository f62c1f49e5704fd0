"""The kernels' own threads give the same results as OpenMP's, also with several callers at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from inference.backends.cpu.linear import QuantizedLinear


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
    torch.ops.tiller_cpu.use_own_threads(True)


@pytest.fixture
def layer() -> QuantizedLinear:
    torch.manual_seed(0)
    return QuantizedLinear(nn.Linear(256, 2000, bias=False).requires_grad_(False))


def test_own_threads_give_the_results_of_openmp(layer: QuantizedLinear) -> None:
    inputs = [torch.randn(rows, 256) for rows in (1, 2, 40, 300)]
    torch.ops.tiller_cpu.use_own_threads(False)
    expected = [layer(x) for x in inputs]
    torch.ops.tiller_cpu.use_own_threads(True)
    for _ in range(300):
        for x, output in zip(inputs, expected, strict=True):
            assert torch.equal(layer(x), output)


def test_several_callers_at_once(layer: QuantizedLinear) -> None:
    torch.ops.tiller_cpu.use_own_threads(True)
    inputs = [torch.randn(rows, 256) for rows in (1, 3, 50, 80)]
    expected = [layer(x) for x in inputs]

    def call(i: int) -> bool:
        torch.set_num_threads(3)  # each thread has its own setting
        return all(torch.equal(layer(inputs[i]), expected[i]) for _ in range(200))

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(4)))


def test_threads_sleep_and_wake_up(layer: QuantizedLinear) -> None:
    torch.ops.tiller_cpu.use_own_threads(True)
    x = torch.randn(20, 256)
    expected = layer(x)
    for pause in (0.0, 0.001, 0.05, 0.2):
        time.sleep(pause)
        assert torch.equal(layer(x), expected)
