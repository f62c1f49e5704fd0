"""Measures how the cost per token grows with running sequences, context and steering configurations.

    .venv/bin/python -m benchmarks.growth            # embedded model, integer; 10 minutes on two slow cores
    .venv/bin/python -m benchmarks.growth --quick    # few points, half a minute
    .venv/bin/python -m benchmarks.growth --model 8b --dtype bfloat16 --kv-cache-gib 16    # on a GPU

Runs only the engine, in this process. Measures decode with 1 to 256 running sequences, with one sequence at
contexts of 128 to 8192 tokens, and with 256 sequences steered in 1 to 256 ways. Measures prefill with one
prompt of up to 8192 tokens, the context length of the embedded model. Models named by size have random
weights.

No cost may grow more than linearly. With n the size:
- A step of n sequences costs O(n), so a token costs O(1).
- The next token of a context of n tokens costs O(n), in decode and in prefill (a whole prompt costs O(n^2)).
- Steering is flat: no number of configurations costs more than no steering.
The cost of a point is the mean of the faster half of its measurements. The benchmark computes a curve's
log-log slope over every stretch of factor 4. The steepest slope may exceed 0 (sequences) or 1 (context) by
0.15, which is 23% over the stretch. A steered step may cost 5% more than an unsteered one, by the faster
halves or by the median of the rounds' ratios, whichever is lower. These tolerances are for noise. If a curve
exceeds them, the exit status is 1.
Writes growth.json (seconds per token of every measurement) and growth.svg.
"""

import argparse
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import RESULTS, build_parser
from benchmarks.growth.curves import Curve, judge
from benchmarks.growth.measure import QUICK, Plan, by_configurations, by_context, by_sequences
from benchmarks.growth.plots import draw
from benchmarks.growth.results import render, to_json
from benchmarks.peers.machine import commit, describe_machine
from benchmarks.steering_cost import SHAPES, build
from inference.engine import Engine


def main() -> int:
    arguments = _parse()
    plan = QUICK if arguments.quick else Plan()
    conditions = _conditions(arguments, plan)
    curves = _measure(build(arguments), plan)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "growth.json").write_text(to_json(curves, conditions), encoding="utf-8")
    draw(curves, arguments.output / "growth.svg")
    print(render(curves, conditions))
    return 0 if all(judge(curve).holds for curve in curves) else 1


def _parse() -> argparse.Namespace:
    parser = build_parser("growth", __doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--model", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--quick", action="store_true", help="measure few points and rounds")
    parser.add_argument("--device", default=device)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--quantization", choices=["none", "integer"], default="integer" if device == "cpu" else "none"
    )
    parser.add_argument("--max-batch-tokens", type=int, default=512)
    parser.add_argument("--kv-cache-gib", type=float, default=4.0)
    parser.add_argument("--cache-directory", default="~/.cache/tiller")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def _conditions(arguments: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(),
        "machine": describe_machine(),
        "commit": commit(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": arguments.model,
        "quantization": arguments.quantization,
        "dtype": arguments.dtype,
        "device": arguments.device,
        "max_batch_tokens": arguments.max_batch_tokens,
        "plan": asdict(plan),
    }


def _measure(engine: Engine, plan: Plan) -> list[Curve]:
    """Exits if the plan does not fit into the engine's context or KV cache."""
    if engine.context_length < max(plan.contexts):
        needed = max(plan.contexts)
        sys.exit(f"growth: the context length is {engine.context_length} tokens, the plan needs {needed}")
    _say("running sequences")
    curves = [by_sequences(engine, plan)]
    _say("steering configurations")
    steering = by_configurations(engine, plan)
    _say("context")
    curves += by_context(engine, plan)
    if engine.scheduler.num_preemptions:
        sys.exit("growth: the KV cache is too small; raise --kv-cache-gib")
    return [*curves, steering]


def _say(line: str) -> None:
    print(f"growth: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
