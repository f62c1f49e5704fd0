"""Compiles the Triton kernels for the shapes of Llama and for a GPU that this host need not have.

    python -m tests.inference.backends.cuda.compilation 90

The argument is the compute capability. First compiles what the engine launches at its start, then what some
random batches launch. Writes one line of JSON per compiled kernel, with these keys:

    kernel      its name
    shared      shared memory in bytes
    spilled     bytes of registers that each thread spills
    stages      num_stages of the launch
    pending     the largest number of copies to shared memory that may still run while the kernel computes
    serving     whether a random batch has compiled it
"""

import json
import random
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
from inference.compute.sampling.operations import PIECE, Truncation

_PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
_SPILLED = re.compile(r"(\d+) bytes spill stores")
_PENDING = re.compile(r"cp\.async\.wait_group\s+(\w+)")
_SHARED = {80: 99 * 1024, 90: 227 * 1024}
"""Bytes per program. An A100 has more, but other GPUs since Ampere do not."""
_HEADS, _KV_HEADS, _HEAD_SIZE = 32, 8, 128
_HIDDEN_SIZE = 4096
_VOCAB_SIZE = 128_256
_NUM_BATCHES = 75
_PROMPT = 50  # tokens


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


class _Compiler:
    """Makes each launch compile its kernel, and not run it. Reports new kernels."""

    def __init__(self, capability: int) -> None:
        self.serving = False
        self._capability = capability
        self._seen: set[str] = set()

    def install(self) -> None:
        driver.set_active(_Driver(self._capability))
        run = JITFunction.run

        def compile_only(kernel: Any, *arguments: Any, **options: Any) -> Any:
            compiled = run(kernel, *arguments, **{**options, "warmup": True})
            if compiled.hash not in self._seen:
                self._seen.add(compiled.hash)
                self._report(compiled)
            return compiled

        JITFunction.run = compile_only

    def _report(self, compiled: Any) -> None:
        ptx = compiled.asm["ptx"]
        report = {
            "kernel": compiled.name,
            "shared": compiled.metadata.shared,
            "spilled": _spilled_bytes(ptx),
            "stages": compiled.metadata.num_stages,
            "pending": max((int(number, 0) for number in _PENDING.findall(ptx)), default=0),
            "serving": self.serving,
        }
        print(json.dumps(report), flush=True)


def main() -> None:
    capability = int(sys.argv[1])
    compiler = _Compiler(capability)
    compiler.install()
    gpu = paged_attention._Gpu(num_sms=132, shared=_SHARED[capability])
    paged_attention._gpu = lambda _: gpu
    _compile_other_models()
    for counts in ([1], [1] * 256, [_PROMPT]):  # the smallest and the largest captured step, and a prompt
        _run(counts, torch.bfloat16)
    _sample(_VOCAB_SIZE)
    compiler.serving = True
    rng = random.Random(0)
    for _ in range(_NUM_BATCHES):
        prompts = [rng.randrange(2, 200) for _ in range(rng.choice([0, 0, 1, 2, 7]))]
        counts = [1] * rng.choice([0, 1, 2, 3, 15, 16, rng.randrange(1, 300)]) + prompts
        _run(counts or [1], torch.bfloat16, rng)


def _sample(vocab_size: int) -> None:
    """Each operation of sampling once, for one row."""
    logits = torch.zeros(1, vocab_size)
    sampling.choose_highest(logits)
    sampling.find_top(logits, 1)
    highest, sums = sampling.weigh(logits, torch.ones(1, 1), PIECE)
    top_k = torch.ones(1, 1, dtype=torch.int64)
    truncation = Truncation(torch.zeros(1, dtype=torch.int64), top_k, top_p=top_k.double())
    sampling.truncate(logits, sums, truncation)
    sampling.invert(logits, sums, torch.zeros(1, 1, dtype=torch.float64), highest)


def _compile_other_models() -> None:
    """Models with other heads, windows and dtypes."""
    for counts in ([1], [1] * 256, [_PROMPT]):
        _attend(counts, torch.bfloat16, (16, 8, 256), window=40, softcap=2.0)
        _attend(counts, torch.float32, (_HEADS, _KV_HEADS, _HEAD_SIZE))
        _attend(counts, torch.bfloat16, (9, 3, 64))
        _attend(counts, torch.bfloat16, (32, 32, 96))
        _attend(counts, torch.float16, (32, 1, 128))
    _rotate(5, torch.bfloat16, (16, 8, 128), with_norms=True)


def _run(counts: list[int], dtype: torch.dtype, rng: random.Random | None = None) -> None:
    """Launches what a step launches whose sequences have `counts` new tokens."""
    heads = _HEADS, _KV_HEADS, _HEAD_SIZE
    tokens = sum(counts)
    x = torch.zeros(tokens, _HIDDEN_SIZE, dtype=dtype)
    layers.rms_norm(x, x[0], 1e-5)
    layers.add_rms_norm(x, x, x[0], 1e-5)
    layers.gate(x)
    rows = torch.zeros(tokens, dtype=torch.int64)
    layers.steer(x, torch.zeros(3, _HIDDEN_SIZE), _shifted(rows, rng))
    _rotate(tokens, dtype, heads, rng)
    _attend(counts, dtype, heads, rng=rng)


def _rotate(
    tokens: int,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    rng: random.Random | None = None,
    *,
    with_norms: bool = False,
) -> None:
    num_heads, kv_heads, size = heads
    angles, cache = torch.zeros(1, tokens, size, dtype=dtype), torch.zeros(64, kv_heads, size, dtype=dtype)
    qkv = torch.zeros(tokens, (num_heads + 2 * kv_heads) * size, dtype=dtype)
    norms = layers.HeadNorms(cache[0, 0], cache[0, 0], 1e-6) if with_norms else None
    slots = _shifted(torch.arange(tokens), rng)
    layers.rotate_and_store(qkv, angles, angles, cache, cache, slots, norms)


def _attend(
    counts: list[int],
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    window: int = 0,
    softcap: float = 0.0,
    rng: random.Random | None = None,
) -> None:
    """Attends for sequences with `counts` new tokens each, after 50 cached tokens."""
    num_heads, kv_heads, size = heads
    tokens = sum(counts)
    query = torch.zeros(tokens, num_heads + 2 * kv_heads, size, dtype=dtype)[:, :num_heads]
    cache = torch.zeros(1024, kv_heads, size, dtype=dtype)
    width = rng.randrange(1, 3000) if rng else 100
    inputs = PagedInputs(
        cache,
        cache,
        slot_mapping=torch.arange(tokens),
        block_tables=_shifted(torch.zeros(len(counts), width, dtype=torch.int32), rng),
        cu_seqlens=_shifted(torch.tensor([0, *counts]).cumsum(0), rng),
        positions=_shifted(torch.cat([torch.arange(50, 50 + count) for count in counts]), rng),
        block_size=16,
    )
    paged_attention.attend_stored(query, inputs, counts.count(1), 0.1, window, softcap)


def _shifted(tensor: torch.Tensor, rng: random.Random | None) -> torch.Tensor:
    """With `rng`, the tensor at an address that is seldom divisible by 16."""
    offset = rng.randrange(4) if rng else 0
    moved = tensor.new_empty(tensor.numel() + offset)[offset:].view(tensor.shape)
    return moved.copy_(tensor)


def _spilled_bytes(ptx: str) -> int:
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
