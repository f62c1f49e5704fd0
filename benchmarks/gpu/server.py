"""Measures the whole server with a saved model: gateway, worker and streaming clients."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from app.bench.client import Target, Workload
from app.bench.figures import Figures, summarize
from app.bench.load import Plan, compare
from benchmarks.gpu.budget import Deadline, OutOfTimeError
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.plan import Options
from benchmarks.peers.processes import ServerError, ServerProcess
from benchmarks.peers.servers import free_port


def measure(
    name: str, scratch: Path, options: Options, plan: Plan, log: Path, deadline: Deadline
) -> Iterator[Figure]:
    """Serves the checkpoint in the folder `model` of `scratch`. Writes the server's log to `log`.

    Yields a figure for each number of streams. Raises BenchError, ServerError and OutOfTimeError.
    """
    started = time.perf_counter()
    port = free_port()
    process = ServerProcess(_command(scratch, options, plan, port), {}, log)
    target = Target("tiller", f"http://127.0.0.1:{port}")
    try:
        try:
            process.wait_until_ready(target.url, deadline.seconds_left)
        except ServerError:
            deadline.check()
            raise
        yield Figure(name, "start of a server", "from the command to ready", time.perf_counter() - started)
        yield from _load(name, target, plan, deadline)
    finally:
        process.terminate()


def _command(scratch: Path, options: Options, plan: Plan, port: int) -> list[str]:
    """Writes the configuration. Returns the command of the server."""
    settings = scratch / "tiller.json"  # JSON is valid YAML
    content = {
        "server": {"port": port},
        "model": {"name": "random", "source": str(scratch / "model")},
        "engine": {
            "device": options.device,
            "dtype": options.dtype,
            "max_batch_tokens": options.max_batch_tokens,
            "max_running": max(plan.concurrencies),
            **({} if options.kv_cache_gib is None else {"kv_cache_gib": options.kv_cache_gib}),
        },
        "steering": {"train_at_start": False},
        "data_directory": str(scratch / "data"),
    }
    settings.write_text(json.dumps(content), encoding="utf-8")
    return [sys.executable, "-m", "app.cli", "serve", "--config", str(settings)]


def _load(name: str, target: Target, plan: Plan, deadline: Deadline) -> Iterator[Figure]:
    with asyncio.Runner() as runner:
        measurements = compare([target], plan)

        async def measure_next() -> Figures | None:
            async with asyncio.timeout(max(deadline.seconds_left, 0.0)):
                async for _, measurement in measurements:
                    return summarize([measurement], plan.workload.tokens)[0]
            return None

        try:
            while (figures := runner.run(measure_next())) is not None:
                yield from _figures(name, figures, plan)
        except TimeoutError:
            raise OutOfTimeError from None


def _figures(name: str, figures: Figures, plan: Plan) -> Iterator[Figure]:
    streams = f"server, {figures.point.concurrency} streams"
    lengths = f"{figures.point.prompt_tokens} + {plan.workload.tokens} tokens"
    failed = f"; {figures.failed} failed: {figures.error}" if figures.failed else ""
    counts = {
        "requests": float(figures.requests),
        "failed": float(figures.failed),
        "client_cores": figures.client_cores,
    }
    latencies = {
        "time to first token": (figures.time_to_first_token_p50, figures.time_to_first_token_p99),
        "inter-token latency": (figures.inter_token_latency_p50, figures.inter_token_latency_p99),
    }
    for what, (median, high) in latencies.items():
        if median is not None and high is not None:
            yield Figure(
                name,
                f"{streams}, {what}",
                f"median of {figures.requests} requests of {lengths}; all output tokens per second{failed}",
                median,
                figures.output_tokens_per_second,
                counts={**counts, "p99_seconds": high},
            )


def plan(*, quick: bool) -> Plan:
    """Prompts of 1000 tokens, which the server computes while other streams run."""
    if quick:
        return Plan((2,), (64,), rounds=1, requests=1, workload=Workload(8))
    return Plan((1, 8, 64, 256), (1000,), rounds=1, requests=2, workload=Workload(128))
