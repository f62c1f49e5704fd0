"""Times the parts of the quick start's first and second start, after its installation.

    .venv/bin/python -m benchmarks.startup
    .venv/bin/python -m benchmarks.startup --starts 4 --cache-directory ~/.cache/tiller    # nothing is new

By default, the cache directory is new: the first start downloads and converts the model and compiles the
kernels. Prints what the server's log says, with the seconds since the start.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx

from benchmarks.command import RESULTS, build_parser, run
from benchmarks.peers.machine import describe_machine
from benchmarks.peers.processes import ServerError, ServerProcess
from benchmarks.peers.servers import Server, Setup, tiller

_POLL_SECONDS = 0.02
_LINE = re.compile(r"(\d{4}-\S+T\S+Z) INFO (\S+): (.*)")
_CHAT = {
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "Tell me about the hotel."}],
    "max_tokens": 1,
}


def main() -> int:
    parser = build_parser("startup", __doc__)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--cache-directory", type=Path, help="default: a new one")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    return run("startup", lambda: _run(arguments), ServerError, httpx.HTTPError)


def _run(arguments: argparse.Namespace) -> int:
    arguments.output.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}")
    with tempfile.TemporaryDirectory(prefix="tiller-bench-") as scratch:
        cache = (arguments.cache_directory or Path(scratch) / "cache").expanduser()
        setup = Setup(peers=Path(scratch), cache=cache, scratch=Path(scratch), slots=1, context=1)
        for number in range(1, arguments.starts + 1):
            print(f"\nStart {number}:")
            for seconds, event in _start(tiller(setup), arguments.output / "startup.log"):
                print(f"  {seconds:6.1f} s  {event}", flush=True)
    return 0


def _start(server: Server, log: Path) -> Iterator[tuple[float, str]]:
    """Seconds since the start of the server, and what had happened then."""
    began = time.time()
    process = ServerProcess(server.command, server.environment, log)
    try:
        process.wait_until_ready(server.url, path="/ready", poll_seconds=_POLL_SECONDS)
        ready = time.time() - began
        answer = httpx.post(f"{server.url}/chat/completions", json=_CHAT, timeout=60, trust_env=False)
        answer.raise_for_status()
        first_token = time.time() - began
    finally:
        process.terminate()
    for stamp, message in _messages(log):
        seconds = datetime.fromisoformat(stamp).timestamp() - began
        if seconds < ready:
            yield seconds, message
    yield ready, "ready"
    yield first_token, "first token"


def _messages(log: Path) -> Iterator[tuple[str, str]]:
    """The time and the text of each line."""
    for line in log.read_text(errors="replace").splitlines():
        if found := _LINE.match(line):
            yield found[1], found[3][:100]


if __name__ == "__main__":
    sys.exit(main())
