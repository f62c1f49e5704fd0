"""Runs the tests that compare with an oracle on the device: a process for each file, several at a time.

A fault of the device ends its use in a process, so one file cannot spoil another.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.budget import Deadline

_ROOT = Path(__file__).parents[2]
PATTERNS = (
    "tests/inference/test_exactness.py",
    "tests/inference/backends/cuda/test_fusion.py",
    "tests/inference/backends/cuda/test_layers.py",
    "tests/inference/steering/test_injection.py",
    "tests/inference/steering/test_mixed_batches.py",
    "tests/inference/steering/test_exactness.py",
    "tests/inference/steering/test_modes.py",
    "tests/inference/steering/test_readings.py",
    "tests/inference/test_engine.py",
    "tests/inference/models/test_fp8.py",
    "tests/inference/backends/cuda/test_fp8.py",
    "tests/inference/runner/test_decode_graphs.py",
    "tests/inference/compute/test_graphs.py",
    "tests/inference/steering/test_probe.py",
    "tests/inference/test_measuring.py",
    "tests/inference/steering/test_text_reading.py",
    "tests/inference/steering/test_conditions.py",
    "tests/inference/runner/test_recovery.py",
    "tests/inference/runner/test_verification.py",
    "tests/inference/models/test_pharia.py",
    "tests/inference/models/test_causal_lm.py",
    "tests/inference/compute/sampling/test_*.py",
    "tests/inference/compute/test_*.py",
    "tests/inference/backends/cuda/test_paged_attention.py",
)
"""The most important first."""
_MAX_PROCESSES = 12
_COLLECTION_FAILED, _NO_TESTS = 2, 5  # exit codes of pytest
_FILE_SECONDS = 80.0
"""Limit for each file."""
_MISSING = re.compile(r"^E +(ModuleNotFoundError: .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What the tests of a file gave."""

    file: str
    status: str
    """"passed", "failed", "out of time", or "not run" if the file needs a package that is missing."""
    summary: str
    seconds: float


def find(pattern: str) -> list[Path]:
    """The test files of a pattern. It is relative to the repository."""
    return sorted(_ROOT.glob(pattern))


def run(patterns: Sequence[str], device: str, log: Path, deadline: Deadline) -> Iterator[Outcome]:
    """Yields the outcome of each file as soon as it ends. Appends the output of pytest to `log`."""
    log.write_bytes(b"")
    pool = ThreadPoolExecutor(max(1, min(_MAX_PROCESSES, len(os.sched_getaffinity(0)) * 3 // 4)))
    running: set[subprocess.Popen[str]] = set()
    try:
        files = {pattern: find(pattern) for pattern in patterns}
        yield from (
            Outcome(pattern, "failed", "no such file", 0.0) for pattern in patterns if not files[pattern]
        )
        ordered = dict.fromkeys(itertools.chain.from_iterable(files.values()))
        waiting = [pool.submit(_run_file, file, device, deadline, running) for file in ordered]
        for done in as_completed(waiting):
            outcome, output = done.result()
            with log.open("a", encoding="utf-8") as written:
                written.write(f"==== {outcome.file}: {outcome.status}, {outcome.seconds:.1f} s\n{output}\n")
            yield outcome
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            _kill(process)


def _run_file(
    file: Path, device: str, deadline: Deadline, running: set[subprocess.Popen[str]]
) -> tuple[Outcome, str]:
    """`running` has the process while it runs."""
    name = str(file.relative_to(_ROOT))
    started = time.monotonic()
    if deadline.seconds_left <= 0:
        return Outcome(name, "out of time", "not started", 0.0), ""
    # Without the project's pytest configuration, because it needs plugins that may be missing.
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(_ROOT)]
    command += [
        "-p",
        "no:cacheprovider",
        "-p",
        "no:schemathesis",
        "--tb=short",
        "-W",
        "default",
        "--disable-warnings",
        name,
    ]
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env={**os.environ, "TEST_DEVICE": device},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    running.add(process)
    over = False
    try:
        output, _ = process.communicate(timeout=max(min(deadline.seconds_left, _FILE_SECONDS), 0.0))
    except subprocess.TimeoutExpired:
        over = True
        _kill(process)
        output, _ = process.communicate()
    running.discard(process)
    status, summary = _judge(process.returncode, output, over=over)
    return Outcome(name, status, summary, time.monotonic() - started), output


def _kill(process: subprocess.Popen[str]) -> None:
    """Kills the process and those that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _judge(returncode: int, output: str, *, over: bool) -> tuple[str, str]:
    last = output.strip().rpartition("\n")[2].strip("= ")
    if over:
        return "out of time", last
    if returncode == _COLLECTION_FAILED and (missing := _MISSING.search(output)):
        return "not run", missing[1]
    if returncode == _NO_TESTS:
        return "not run", last
    return ("passed" if returncode == 0 else "failed"), last
