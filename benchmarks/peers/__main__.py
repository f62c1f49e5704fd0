"""`make bench`: measures Tiller and the installed peers under the same load in the same minutes.

    make bench                                                          # everything; hours on two slow cores
    make bench BENCH='--rounds 1 --concurrency 1,8 --prompt-tokens 135 --servers tiller,llama.cpp'
    make peers                                                          # installs the peers first

Only one server runs at a time, and the others are paused. Peers keep their defaults where the load sets
nothing else (for example, llama.cpp samples from the 40 most likely tokens).
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import uvloop

from app.bench import report
from app.bench.client import BenchError, Target, Workload
from app.bench.figures import Measurement, summarize
from app.bench.load import Plan, compare
from app.bench.plot import check_plot
from app.commands.bench import parse_numbers, progress
from app.configuration import SettingsError
from benchmarks.command import RESULTS, build_parser, run
from benchmarks.peers.machine import describe_machine
from benchmarks.peers.processes import ServerError, ServerProcess
from benchmarks.peers.results import Run, write
from benchmarks.peers.servers import SERVERS, Server, Setup
from inference.interface.directories import SourceError

_ROOT = Path(__file__).parents[2]
_END_TOKENS = (0, 2)  # of the embedded model
_CONTEXT_MARGIN = 64
_CONTEXT_STEP = 256


def main() -> int:
    arguments = _parse()
    return run("bench", lambda: _run(arguments, _plan(arguments)), BenchError, SettingsError, SourceError)


def _parse() -> argparse.Namespace:
    parser = build_parser("peers", __doc__)
    parser.add_argument("--servers", default=",".join(SERVERS), help=f"some of {', '.join(SERVERS)}")
    parser.add_argument("--concurrency", default="1,8,32,64")
    parser.add_argument("--prompt-tokens", default="16,135,1000", help="lengths of whole prompts")
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=2, help="how many per stream and round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-generate", action="store_true", help="skip transformers' own generate")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--peers", type=Path, default=os.environ.get("PEERS", _ROOT / ".peers"))
    parser.add_argument("--cache-directory", type=Path, default="~/.cache/tiller")
    return parser.parse_args()


def _plan(arguments: argparse.Namespace) -> Plan:
    if unknown := set(arguments.servers.split(",")) - SERVERS.keys():
        raise BenchError(f"unknown servers: {', '.join(sorted(unknown))}")
    return Plan(
        parse_numbers(arguments.concurrency, least=1),
        parse_numbers(arguments.prompt_tokens, least=1),
        arguments.rounds,
        arguments.requests,
        Workload(arguments.tokens, banned=_END_TOKENS),
        arguments.seed,
    )


def _run(arguments: argparse.Namespace, plan: Plan) -> int:
    check_plot(Path("load.svg"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    run = Run(plan, describe_machine())
    measurements: list[Measurement] = []
    try:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiller-bench-")))
            processes = _start_all(arguments, run, scratch, stack)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_measure(arguments, run, processes, measurements))
    finally:
        if measurements:  # also after an interruption
            figures = report.by_point(summarize(measurements, plan.workload.tokens))
            print(write(run, figures, arguments.output))
    lines = report.problems(figures, plan.workload.tokens)
    lines += [f"{name} is not measured: {reason}" for name, reason in run.left_out.items()]
    for line in lines:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if lines else 0


def _start_all(
    arguments: argparse.Namespace, run: Run, scratch: Path, stack: ExitStack
) -> dict[str, ServerProcess]:
    """Starts one server after the other, and pauses each one when it is ready. Raises BenchError."""
    setup = _setup(arguments, run.plan, scratch)
    processes = {}
    for name in dict.fromkeys(arguments.servers.split(",")):
        server = SERVERS[name](setup)
        if server is None:
            _say(f"{name} is not installed; `make peers` installs it")
            continue
        try:
            processes[name] = _start(server, arguments.output / f"{name}.log", stack)
            run.servers.append(server)
        except ServerError as error:
            run.left_out[name] = str(error)
            _say(f"{name} is not measured: {error}")
    if not processes:
        raise BenchError("none of the servers could be started")
    return processes


def _start(server: Server, log: Path, stack: ExitStack) -> ServerProcess:
    _say(f"starting {server.name}")
    process = ServerProcess(server.command, server.environment, log)
    stack.callback(process.terminate)
    try:
        process.wait_until_ready(server.url)
    except ServerError:
        process.terminate()  # now, because it may use CPU time
        raise
    process.pause()
    return process


def _setup(arguments: argparse.Namespace, plan: Plan, scratch: Path) -> Setup:
    context = max(plan.prompt_tokens) + plan.workload.tokens + _CONTEXT_MARGIN
    return Setup(
        peers=arguments.peers.expanduser().absolute(),
        cache=arguments.cache_directory.expanduser(),
        scratch=scratch,
        slots=max(plan.concurrencies),
        context=-(-context // _CONTEXT_STEP) * _CONTEXT_STEP,
    )


async def _measure(
    arguments: argparse.Namespace,
    run: Run,
    processes: dict[str, ServerProcess],
    measurements: list[Measurement],
) -> None:
    targets = [Target(server.name, server.url) for server in run.servers]

    def turn(target: Target) -> AbstractContextManager[None]:
        return processes[target.name].awake()

    async for number, measurement in compare(targets, run.plan, turn):
        measurements.append(measurement)
        _say(progress(number, run.plan, measurement))
        if number == len(run.generate) and not arguments.no_generate:
            run.generate.append(_generate(arguments))


def _generate(arguments: argparse.Namespace) -> float:
    """Tokens per second of plain transformers, while all servers are paused."""
    _say("transformers' generate")
    command = [sys.executable, "-m", "benchmarks.generate", "--tokens", str(arguments.tokens)]
    command += ["--cache-directory", str(arguments.cache_directory)]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=False)
    try:
        return float(done.stdout)
    except ValueError:
        raise BenchError("transformers' generate failed; see its message above") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
