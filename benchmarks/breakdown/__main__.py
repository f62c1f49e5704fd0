"""Shows what each part of a step costs on a CPU, beside what the processor could reach.

    OMP_WAIT_POLICY=passive .venv/bin/python -m benchmarks.breakdown    # 2 minutes
    .venv/bin/python -m benchmarks.breakdown --level x86-64-v3          # only AVX2, on any newer processor
    .venv/bin/python -m benchmarks.breakdown --json breakdown.json

All parts run in one thread and are timed by the CPU time of that thread, so other processes disturb them
little. Each figure is the fastest of several runs. Parts run on random numbers in the shapes of the embedded
model (integer), whole steps in the engine. "rest" is what a step takes beside its parts: rotation, residuals,
the embedding, and the Python code of the model. "at the limit" is the time of the part if it did nothing but
its products, or nothing but reading its memory once, whichever takes longer.

At the end, whole steps run with all threads, by the clock. The server sets OMP_WAIT_POLICY for its worker.
Without it, torch's threads poll after each of its operations, and disturb Tiller's.

The gateway is another process: see `python -m benchmarks.gateway` for its cost per token.
"""

import argparse
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.breakdown import limits, parts
from benchmarks.breakdown.parts import Shape, Workload
from benchmarks.breakdown.results import Breakdown, render, to_json
from benchmarks.breakdown.steps import Steps
from benchmarks.command import build_parser, run
from benchmarks.peers.machine import commit, describe_machine
from benchmarks.steering_cost import build
from inference.backends.backend import KernelError
from inference.backends.cpu import build as kernels
from inference.backends.cpu.levels import all_levels

MAX_BATCH_TOKENS = 512
WORKLOADS = (
    Workload("decode, 1 sequence of 150 tokens", 1, 150, 1),
    Workload("decode, 8 sequences of 150 tokens", 8, 150, 1),
    Workload("decode, 64 sequences of 150 tokens", 64, 150, 1),
    Workload("prefill, 8 prompts of 135 tokens", 8, 135, 135),
    Workload("prefill, 1 prompt of 1000 tokens", 1, 1000, 1000),
)
_DECODE_REPEATS, _PREFILL_REPEATS = 20, 4


def main() -> int:
    return run("breakdown", lambda: _run(_parse()), KernelError)


def _parse() -> argparse.Namespace:
    parser = build_parser("breakdown", __doc__)
    names = [level.name for level in all_levels()]
    parser.add_argument("--level", choices=names, help="use only the instructions of this kind of processor")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--cache-directory", default="~/.cache/tiller")
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    started = datetime.now(UTC).isoformat()
    level = next((level for level in all_levels() if level.name == arguments.level), None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kernels.load(Path(arguments.cache_directory).expanduser(), level)
    reachable = limits.measure(level)
    breakdowns = _measure(arguments.cache_directory, reachable, threads)
    conditions = {
        "started": started,
        "machine": describe_machine(),
        "commit": commit(),
        "level": arguments.level or "native",
    }
    if arguments.json:
        arguments.json.write_text(to_json(breakdowns, reachable, conditions), encoding="utf-8")
    print(render(breakdowns, reachable))
    return 0


def _measure(cache_directory: str, reachable: limits.Limits, threads: int) -> list[Breakdown]:
    engine = build(
        argparse.Namespace(
            model="embedded",
            device="cpu",
            dtype="float32",
            quantization="integer",
            kv_cache_gib=1.0,
            max_batch_tokens=MAX_BATCH_TOKENS,
            cache_directory=cache_directory,
        )
    )
    steps, shape = Steps(engine), Shape.of(engine.runner.model)
    breakdowns = [_break_down(steps, shape, workload, reachable) for workload in WORKLOADS]
    if threads == 1:
        return breakdowns
    torch.set_num_threads(threads)
    seconds = [steps.measure_wall(workload, _repeats(workload)) for workload in WORKLOADS]
    return [
        replace(breakdown, threads=threads, threaded_seconds=one)
        for breakdown, one in zip(breakdowns, seconds, strict=True)
    ]


def _break_down(steps: Steps, shape: Shape, workload: Workload, reachable: limits.Limits) -> Breakdown:
    print(f"breakdown: {workload.name}", file=sys.stderr, flush=True)
    seconds, others = steps.measure(workload, _repeats(workload))
    computed = parts.measure(shape, workload, MAX_BATCH_TOKENS, reachable)
    return Breakdown(workload.name, workload.tokens, seconds, (*computed, *others))


def _repeats(workload: Workload) -> int:
    return _DECODE_REPEATS if workload.queries == 1 else _PREFILL_REPEATS


if __name__ == "__main__":
    sys.exit(main())
