"""Compiles the Triton kernels for the shapes of Llama and for a GPU that this host need not have.

    python -m tests.inference.backends.cuda.compilation 90

The argument is the compute capability. Writes one line of JSON per kernel: its name, the shared memory in
bytes, and the bytes of registers that each thread spills.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from inference.backends.cuda import layers, paged_attention, sampling
from inference.compute.attention import PagedInputs

_PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
_SPILLED = re.compile(r"(\d+) bytes spill stores")
_KV_HEADS = 8
_NUM_SMS = 132


class _Driver:
    """Tells Triton what it asks about a GPU before it compiles for it."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def main() -> None:
    capability = int(sys.argv[1])
    driver.set_active(_Driver(capability))
    paged_attention._num_sms = lambda _: _NUM_SMS
    run, seen = JITFunction.run, set()

    def compile_only(self: Any, *arguments: Any, **options: Any) -> Any:
        compiled = run(self, *arguments, **{**options, "warmup": True})
        if compiled.hash not in seen:
            seen.add(compiled.hash)
            spilled = _spilled_bytes(compiled.asm["ptx"], capability)
            shared = compiled.metadata.shared
            print(json.dumps({"kernel": compiled.name, "shared": shared, "spilled": spilled}), flush=True)
        return compiled

    JITFunction.run = compile_only
    for counts in ([1], [1] * 256, [50], [1, 50]):  # Triton compiles another kernel for an argument of 1
        _attend(counts, torch.bfloat16, head_size=128)
    _attend([1, 50], torch.bfloat16, head_size=256, window=40, softcap=2.0)
    _attend([1, 50], torch.float32, head_size=128)
    _launch_others(torch.bfloat16, head_size=128)


def _launch_others(dtype: torch.dtype, head_size: int) -> None:
    x = torch.zeros(5, 4096, dtype=dtype)
    layers.rms_norm(x, x[0], 1e-5)
    layers.add_rms_norm(x, x, x[0], 1e-5)
    layers.gate(x)
    layers.steer(x, torch.zeros(3, 4096), torch.zeros(5, dtype=torch.int64), torch.zeros(5, 1))
    angles, cache = x.new_zeros(1, 5, head_size), x.new_zeros(64, _KV_HEADS, head_size)
    qkv = x.new_zeros(5, 6 * _KV_HEADS * head_size)
    layers.rotate_and_store(qkv, angles, angles, cache, cache, torch.arange(5))
    sampling.weigh(torch.zeros(3, 128_256), torch.ones(3, 1), 256)


def _attend(
    counts: list[int], dtype: torch.dtype, head_size: int, window: int = 0, softcap: float = 0.0
) -> None:
    """Attends for sequences with `counts` new tokens each, after 50 cached tokens."""
    query = torch.zeros(sum(counts), 4 * _KV_HEADS, head_size, dtype=dtype)
    cache = query.new_zeros(1024, _KV_HEADS, head_size)
    inputs = PagedInputs(
        cache,
        cache,
        slot_mapping=torch.arange(len(query)),
        block_tables=torch.zeros(len(counts), 100, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, *counts]).cumsum(0),
        positions=torch.cat([torch.arange(50, 50 + count) for count in counts]),
        block_size=16,
    )
    paged_attention.attend_stored(query, inputs, counts.count(1), 0.1, window, softcap)


def _spilled_bytes(ptx: str, capability: int) -> int:
    """The bytes of registers that a thread spills to memory, as ptxas reports them."""
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [_PTXAS, "-v", f"--gpu-name={target[1]}", source, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sum(map(int, _SPILLED.findall(done.stderr)))


if __name__ == "__main__":
    main()
