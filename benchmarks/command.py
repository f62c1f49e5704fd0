"""The argument parser and the exit status of all benchmarks. Imports only the standard library."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def run(name: str, act: Callable[[], int], *errors: type[Exception]) -> int:
    """Runs a benchmark. Returns its exit status, 1 for any of `errors`, or 130 after Ctrl-C.

    Prints an error as one line. SIGTERM raises SystemExit, so that the benchmark ends its servers.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return act()
    except errors as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME`. Keeps the line breaks of the description."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
    )


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a benchmark that loads one server for some minutes and writes files."""
    parser.add_argument("--url", help="of a server on this machine; default: start the quick start's server")
    parser.add_argument("--token", help="an access token, if the server requires one")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cache-directory", type=Path, default=Path("~/.cache/tiller"))
