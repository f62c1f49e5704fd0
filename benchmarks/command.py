"""What the benchmarks' commands have in common: how they are parsed, and how they end. Needs no package."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def run(name: str, act: Callable[[], int], *errors: type[Exception]) -> int:
    """Runs a benchmark and returns the exit status: 1 with one line for any of `errors`, 130 after Ctrl-C.

    SIGTERM ends it as Ctrl-C does, so that the servers it started end with it.
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
    """For `python -m benchmarks.NAME`. The description keeps its lines."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
    )


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """For a benchmark that loads one server for some minutes and writes its results to a folder."""
    parser.add_argument("--url", help="of a server on this machine; default: start the quick start's")
    parser.add_argument("--token", help="an access token, if the server asks for one")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cache-directory", type=Path, default=Path("~/.cache/tiller"))
