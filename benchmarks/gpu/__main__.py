"""Measures an engine's speed against a GPU's limits, with random weights, and runs the tests that need a GPU.

    python -m benchmarks.gpu --seconds 540          # all parts with an 8B and a 1B shape, on one H100
    python -m benchmarks.gpu --parts engine --models 1b --quick                    # a few figures
    python -m benchmarks.gpu --models tiny --device cpu --dtype float32 --quick    # a dry run on any machine

Needs no network and no installation; docs/performance.md lists the packages. Runs these parts in this order,
each with a time limit: an engine with the first model (limits of the device, decode, prompts, steering and
sampling), tests that compare with an oracle, attention beside other implementations, engines with the other
models, and the whole server with streaming clients.
Writes gpu.json and gpu.svg after every line, and gpu-tests.log and gpu-server-MODEL.log.
Returns 1 if a test or a part failed. A lack of time, or of a package, is no failure.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.command import RESULTS, build_parser, run
from benchmarks.gpu import oracles, plan
from benchmarks.gpu.budget import Deadline, OutOfTimeError
from benchmarks.gpu.plan import Entry, Options, Part
from benchmarks.gpu.process import OUT_OF_TIME, Ended, Environment, MeasuringProcess
from benchmarks.gpu.results import Results
from benchmarks.peers.machine import commit

_ROOT = Path(__file__).parents[2]


def main() -> int:
    arguments = _parse()
    whole = Deadline.after(arguments.seconds)
    _extend_python_path()
    entries = plan.entries(arguments.parts.split(","), arguments.models.split(","))
    settings = {"commit": commit(), "dtype": arguments.dtype, "seconds": arguments.seconds}
    results = Results(arguments.output, settings)
    options = Options(arguments.device, arguments.dtype, arguments.max_batch_tokens, arguments.kv_cache_gib)
    with MeasuringProcess(options) as process:
        for entry in entries:
            deadline = entry.deadline(whole, arguments.seconds)
            _run(entry, arguments, process, deadline, results)
    return int(results.have_failed)


def _extend_python_path() -> None:
    """Lets servers and tests, which run in other folders, import what this process imports."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(Path(path).resolve()) for path in given if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *paths])


def _parse() -> argparse.Namespace:
    parser = build_parser("gpu", __doc__)
    parser.add_argument("--seconds", type=float, default=plan.SECONDS, help="time for all parts together")
    parser.add_argument(
        "--models", default="8b,1b", help="some of tiny, 400m, 1b and 8b, separated by commas"
    )
    parser.add_argument("--parts", default=",".join(plan.PARTS), help="some of these, separated by commas")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller measurements")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--kv-cache-gib", type=float, help="default: most of the free memory")
    parser.add_argument(
        "--tests", default=",".join(oracles.PATTERNS), help="patterns of test files, separated by commas"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def _run(
    entry: Entry,
    arguments: argparse.Namespace,
    process: MeasuringProcess,
    deadline: Deadline,
    results: Results,
) -> None:
    """Runs a part and records how it ended. A fault of one part does not end the others."""
    if deadline.seconds_left <= 0:
        results.end(entry.name, 0.0, f"not started, {OUT_OF_TIME}", stopped=True, details={})
        return
    results.begin(entry.name, deadline.seconds_left)
    started, ended = time.monotonic(), Ended()
    try:
        for item in _items(entry, arguments, process, deadline):
            if isinstance(item, Ended):
                ended = item
            elif isinstance(item, Environment):
                results.set_environment(item.content)
            else:
                results.add(item)
    except OutOfTimeError:
        ended = Ended(OUT_OF_TIME)
    except ModuleNotFoundError as error:
        ended = Ended(f"not run, {error}")
    except Exception as error:
        ended = Ended(f"{type(error).__name__}: {error}")
    stopped = ended.fault is not None and ended.fault.startswith((OUT_OF_TIME, "not run"))
    results.end(entry.name, time.monotonic() - started, ended.fault, stopped=stopped, details=ended.details)


def _items(
    entry: Entry, arguments: argparse.Namespace, process: MeasuringProcess, deadline: Deadline
) -> Iterator[object]:
    options = process.options
    match entry.kind:
        case "tests":
            log = arguments.output / "gpu-tests.log"
            yield from oracles.run(arguments.tests.split(","), arguments.device, log, deadline)
        case "server":
            yield from _serve(entry.model, arguments, process, deadline)
        case kind:
            yield from process.run(Part(kind, options, arguments.quick, entry.model), deadline)


def _serve(
    model: str, arguments: argparse.Namespace, process: MeasuringProcess, deadline: Deadline
) -> Iterator[object]:
    """Saves a checkpoint in the measuring process, ends that process, and measures a server."""
    from benchmarks.gpu import server  # a GPU host may have only the packages that the engine needs

    scratch = Path(tempfile.mkdtemp(prefix="tiller-gpu-"))
    try:
        part = Part("checkpoint", process.options, arguments.quick, model, scratch / "model")
        for item in process.run(part, deadline):
            if isinstance(item, Ended) and item.fault is not None:
                yield item
                return
            if not isinstance(item, Ended):
                yield item
        process.close()  # the server gets the whole device
        log = arguments.output / f"gpu-server-{model}.log"
        load = server.plan(quick=arguments.quick)
        yield from server.measure(model, scratch, process.options, load, log, deadline)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    sys.exit(run("gpu", main))
