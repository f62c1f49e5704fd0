"""How the cost per token grows with running sequences, with context, and with steering configurations.

    .venv/bin/python -m benchmarks.growth            # the embedded model, int8; ten minutes on two slow cores
    .venv/bin/python -m benchmarks.growth --quick    # few points, half a minute
    .venv/bin/python -m benchmarks.growth --model 8b --dtype bfloat16 --kv-cache-gib 16    # on a GPU

The engine alone, in this process. Decode is measured with 1 to 256 running sequences, with one sequence at
contexts of 128 to 8192 tokens, and with 256 sequences steered in 1 to 256 ways; prefill with one prompt of
up to 8192 tokens, which the embedded model bears. Models named by size have random weights.

Nothing may grow worse than linearly. With n the size:
- a step of n sequences costs O(n), so a token O(1);
- the next token of a context of n costs O(n), in decode as in prefill (whose whole prompt is O(n^2));
- steering is flat: no number of configurations costs more than no steering.
The cost of a point is the mean of the faster half of its measurements. A curve's log-log slope is taken over
every stretch of factor 4; the steepest may exceed 0 (sequences) or 1 (context) by 0.15, which is 23% over the
stretch. A steered step may cost 5% more than an unsteered one, by the faster halves or by the median of the
rounds' ratios, whichever is lower. Noise may do so much; beyond it the exit status is 1.
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
    parser.add_argument("--quick", action="store_true", help="few points and rounds")
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
    """Exits if the engine cannot hold what is asked of it."""
    if engine.context_length < max(plan.contexts):
        sys.exit(f"growth: the engine's context ends at {engine.context_length} tokens")
    _say("running sequences")
    curves = [by_sequences(engine, plan)]
    _say("steering configurations")
    steering = by_configurations(engine, plan)
    _say("context")
    curves += by_context(engine, plan)
    if engine.scheduler.num_preemptions:
        sys.exit("growth: the KV cache was too small; give more --kv-cache-gib")
    return [*curves, steering]


def _say(line: str) -> None:
    print(f"growth: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
