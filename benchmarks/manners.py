"""Measures how much longer an answer takes beside processes that compute all the time.

    .venv/bin/python -m benchmarks.manners
    .venv/bin/python -m benchmarks.manners --quantization none --busy 2,8 --rounds 3

The fair share: each of the engine's threads and each busy process gets an equal part of the processors. So
with 2 threads on 2 processors beside 4 busy processes, an answer should take 3 times as long as alone. The
script fails if it takes more than 1.25 times that. All run in one session, because Linux divides time among
sessions first. Figures are medians over rounds; each round has its own answer without busy processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.commands.bench import parse_numbers
from app.workers.process import environment_of
from benchmarks.command import build_parser, run
from benchmarks.peers.machine import describe_machine
from inference.interface.config import EngineConfig
from inference.interface.processors import allowed_processors
from tiller import LLM
from tiller.options import Request

MAX_RATIO = 1.25
"""Of the time beside busy processes to that of a fair share."""
_PROMPT = "Tell me about the weather in the mountains."
_SETTLE_SECONDS = 0.5
_BUSY = "while True: pass"
_PREPARED = "TILLER_BENCHMARK_PREPARED"


def main() -> int:
    arguments = _parse()
    _take_worker_environment(arguments.quantization)
    return run("manners", lambda: _run(arguments))


def _parse() -> argparse.Namespace:
    parser = build_parser("manners", __doc__)
    parser.add_argument("--quantization", choices=("none", "integer"), default="integer")
    parser.add_argument("--busy", default="2,4,8", help="numbers of busy processes")
    parser.add_argument("--sequences", type=int, default=1, help="answers at the same time")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache-directory", type=Path, default="~/.cache/tiller")
    return parser.parse_args()


def _take_worker_environment(quantization: str) -> None:
    """Starts this program again with the variables that a worker gets: OpenMP reads them at its start."""
    if _PREPARED not in os.environ:
        environment = environment_of(EngineConfig(quantization=quantization))
        os.execve(sys.executable, sys.orig_argv, {**environment, _PREPARED: "1"})


def _run(arguments: argparse.Namespace) -> int:
    counts = parse_numbers(arguments.busy, least=1)
    cache = arguments.cache_directory.expanduser()
    with LLM(quantization=arguments.quantization, cache_directory=cache, kv_cache_gib=0.5) as llm:

        def answer() -> float:
            return _time_answers(llm, arguments.sequences, arguments.tokens)

        answer()
        rounds = [_measure(answer, counts) for _ in range(arguments.rounds)]
    machine = describe_machine()
    print(f"{machine['processor']}, {machine['cores']} cores; {arguments.quantization}")
    print("| busy processes | seconds | x alone | fair share | x fair share |\n|---|---|---|---|---|")
    ratios = [_show(rounds, busy) for busy in (0, *counts)]
    return int(max(ratios) > MAX_RATIO)


def _show(rounds: list[dict[int, float]], busy: int) -> float:
    """Prints a row. Returns the time of the answers relative to a fair share."""
    threads = processors = allowed_processors()
    seconds = statistics.median(times[busy] for times in rounds)
    slowdown = statistics.median(times[busy] / times[0] for times in rounds)
    fair = (threads + busy) / processors
    print(f"| {busy} | {seconds:.2f} | {slowdown:.2f} | {fair:.2f} | {slowdown / fair:.2f} |")
    return slowdown / fair


def _measure(answer: Callable[[], float], counts: tuple[int, ...]) -> dict[int, float]:
    """Seconds of the answers, by the number of busy processes."""
    times = {0: answer()}
    for busy in counts:
        with _busy_processes(busy):
            times[busy] = answer()
    return times


def _time_answers(llm: LLM, sequences: int, tokens: int) -> float:
    request: Request = {"messages": _PROMPT, "max_tokens": tokens, "temperature": 0}
    began = time.monotonic()
    llm.generate_many([request] * sequences)
    return time.monotonic() - began


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        time.sleep(_SETTLE_SECONDS)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
