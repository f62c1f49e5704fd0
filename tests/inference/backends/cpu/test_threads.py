"""The kernels' own threads give the same results as OpenMP's, also with several callers at once."""

import ctypes
import os
import platform
import struct
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


def _system_calls() -> dict[str, int]:
    """The number of sched_getattr, by processor; empty where time slices cannot be chosen."""
    version = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())
    return {"x86_64": 315, "aarch64": 275} if platform.system() == "Linux" and version >= (6, 12) else {}


def _scheduling(thread: int) -> tuple[int, int]:
    """Returns a thread's niceness and its time slice in ns."""
    attributes = ctypes.create_string_buffer(48)
    number = _system_calls()[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, thread, attributes, len(attributes), 0) == 0
    fields = struct.unpack("<IIQiIQQQ", attributes.raw)
    return fields[3], fields[5]


@pytest.mark.skipif(platform.machine() not in _system_calls(), reason="needs Linux 6.12 or later")
def test_threads_ask_for_short_turns_and_keep_their_niceness(layer: QuantizedLinear) -> None:
    torch.ops.tiller_cpu.use_own_threads(True)
    layer(torch.randn(300, 256))
    time.sleep(0.1)  # a new thread may not have asked yet
    threads = [_scheduling(int(thread)) for thread in os.listdir("/proc/self/task")]
    niceness = os.nice(0)
    assert threads.count((niceness, 100_000)) >= 3
    assert {nice for nice, _ in threads} == {niceness}
