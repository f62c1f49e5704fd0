"""Measures engine speed against a GPU's limits, with random weights, and runs the tests that need a GPU.

    python -m benchmarks.gpu                             # the tests, then all figures
    python -m benchmarks.gpu --parts engine --models 1b --quick                    # a few figures
    python -m benchmarks.gpu --models tiny --device cpu --dtype float32 --quick    # a dry run on any machine

Needs torch, triton, transformers, msgspec, numpy, matplotlib, and pytest for the tests, but no package index,
no network and no installation. Measures the speed of copies and matrix products, and the time of attention in
each back end. Then measures each model: decode with 1, 8, 64 and 256 sequences of 1024 tokens, prefill, the
time to first token, and steering with 0, 1 and 256 configurations, at one layer and at all layers that may be
steered. If the gateway's packages are installed, last measures the whole server with as many streams.
The share of limit is the time that the measured limits allow, divided by the time taken. For steering, it is
the unsteered time, divided by the steered time.
Writes gpu.json and gpu.svg. Prints each table row at once, so that an interrupted run leaves them.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.command import RESULTS, build_parser
from benchmarks.gpu import attention, speed
from benchmarks.gpu import limits as device_limits
from benchmarks.gpu.limits import Limits
from benchmarks.gpu.plot import draw
from benchmarks.gpu.speed import Figure
from benchmarks.peers.machine import commit
from benchmarks.steering_cost import SHAPES, build, llama_config
from inference.engine import Engine

_ROOT = Path(__file__).parents[2]
_TESTS = ("tests/inference", "--ignore", "tests/inference/backends/cpu")
_TEST_PROCESSES = 6
_PARTS = ("tests", "attention", "engine", "server")


def main() -> int:
    arguments = _parse()
    parts = arguments.parts.split(",")
    status = _run_tests(arguments.device) if "tests" in parts else 0
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    small = arguments.quick and device.type == "cpu"
    limits = device_limits.measure(
        device, dtype, copied_bytes=2**24 if small else 2**31, size=512 if small else 8192
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, commit {commit()}, {arguments.dtype}: ", end="")
    print(f"{limits.bytes_per_second / 1e9:.0f} GB/s, {limits.flops / 1e12:.2f} TFLOP/s", flush=True)
    figures: list[Figure] = []
    if "attention" in parts:
        figures += _print_each(attention.compare(device, dtype, limits, small=small))
    for model in arguments.models.split(","):
        if "engine" in parts:
            figures += _print_each(_measure(model, arguments, limits))
            _free(device)
        if "server" in parts:
            figures += _print_each(_measure_server(model, arguments, device, dtype))
    arguments.output.mkdir(parents=True, exist_ok=True)
    content = {
        "device": name,
        "torch": torch.__version__,
        "commit": commit(),
        "dtype": arguments.dtype,
        "limits": asdict(limits),
        "figures": [asdict(figure) for figure in figures],
    }
    (arguments.output / "gpu.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draw(figures, name, arguments.output / "gpu.svg")
    return status


def _parse() -> argparse.Namespace:
    parser = build_parser("gpu", __doc__)
    parser.add_argument("--models", default="8b,1b", help=f"some of {', '.join(SHAPES)}, separated by commas")
    parser.add_argument("--parts", default=",".join(_PARTS), help="some of these, separated by commas")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--kv-cache-gib", type=float, help="default: nine tenths of the free memory")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def _run_tests(device: str) -> int:
    """Runs the oracle tests with their models on the device, and the tests of its kernels.

    Ignores the project's pytest configuration, because it needs plugins that may be missing.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(_ROOT)]
    command += ["--continue-on-collection-errors", "-W", "default"]
    if find_spec("xdist"):
        command += ["--numprocesses", str(_TEST_PROCESSES), "--dist", "loadscope"]
    environment = {**os.environ, "TEST_DEVICE": device}
    return subprocess.run([*command, *_TESTS], cwd=_ROOT, env=environment, check=False).returncode


def _print_each(figures: Iterator[Figure]) -> list[Figure]:
    print("\n| model | what | ms | tokens/s | share of limit |\n|---|---|---|---|---|", flush=True)
    kept = []
    for figure in figures:
        share = "" if figure.share_of_limit is None else f"{figure.share_of_limit:.3f}"
        numbers = f"{figure.seconds * 1e3:.2f} | {figure.tokens_per_second:.0f} | {share}"
        print(f"| {figure.model} | {figure.what} | {numbers} |", flush=True)
        kept.append(figure)
    return kept


def _measure(model: str, arguments: argparse.Namespace, limits: Limits) -> Iterator[Figure]:
    quick = arguments.quick
    counts, context, steps = ((1, 4), 64, 4) if quick else ((1, 8, 64, 256), 1024, 64)
    engine = _build(model, arguments, None)
    work = device_limits.work_of(engine.runner.model)
    yield speed.first_token(engine, model, context)  # also warms up
    yield speed.first_token(engine, model, context)
    yield speed.prefill(engine, model, 2 if quick else 16, context, limits, work)
    for count in counts:
        yield speed.decode(engine, model, count, context, steps, limits, work)
    yield from speed.steering(engine, model, counts[-1], context, steps // 4, rounds=2 if quick else 8)
    blocks = tuple(range(len(engine.runner.model.layers) * 4 // 5))  # the last fifth is never steered
    del engine
    gc.collect()
    engine = _build(model, arguments, blocks)
    yield from speed.steering(engine, model, counts[-1], context, steps // 4, rounds=2 if quick else 8)


def _measure_server(
    model: str, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[Figure]:
    try:
        from benchmarks.gpu import server
    except ImportError as error:
        # A GPU host without a package index may have only the packages that the engine needs.
        print(f"The server is not measured: {error}", flush=True)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    log = arguments.output / f"gpu-server-{model}.log"
    plan = server.plan(quick=arguments.quick)
    yield from server.measure(model, llama_config(model), dtype, device, plan, log)


def _free(device: torch.device) -> None:
    """Frees the memory of earlier engines."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _build(model: str, arguments: argparse.Namespace, blocks: tuple[int, ...] | None) -> Engine:
    return build(
        argparse.Namespace(
            model=model,
            device=arguments.device,
            dtype=arguments.dtype,
            quantization="none",
            kv_cache_gib=arguments.kv_cache_gib,
            max_batch_tokens=arguments.max_batch_tokens,
            steering_blocks=blocks,
            cache_directory="~/.cache/tiller",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
