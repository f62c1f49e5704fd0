"""Runs the examples of all clients, or of those that are named, each in an environment of its own.

    make clients                                    # all clients, with the quick start's server
    make clients CLIENTS="openai llm"               # only these
    .venv/bin/python -m examples.runner --url http://127.0.0.1:8000 --token TOKEN openai

Each client asks the same question, unsteered and steered if the client can steer, and must print the answers
that the server gives over plain HTTP. Prints a table. Exits with 1 if an installed client failed.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.command import build_parser, run
from benchmarks.peers.processes import ServerError
from examples.runner.clients import Client, load_clients
from examples.runner.execution import FAILED, Result, run_client, shorten
from examples.runner.installer import Installer
from examples.runner.report import render
from examples.runner.target import Target, TargetError, serving

_FOLDER = Path(__file__).parents[2] / ".clients"
_LOG_LINES = 20


def main() -> int:
    arguments = _parse()
    return run("clients", lambda: _run(arguments), TargetError, ServerError, subprocess.CalledProcessError)


def _parse() -> argparse.Namespace:
    names = list(load_clients())
    parser = build_parser("clients", __doc__)
    parser.prog = "python -m examples.runner"
    parser.add_argument("client", nargs="*", metavar="CLIENT", help=f"default: all: {', '.join(names)}")
    parser.add_argument("--url", help="of a running server; default: start the quick start's server")
    parser.add_argument("--token", default="none", help="an access token, if the server requires one")
    parser.add_argument("--keep", action="store_true", help="keep the installed clients in .clients")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.client if name not in names]
    if unknown:
        parser.error(f"unknown client: {', '.join(unknown)}; must be of {', '.join(names)}")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    clients = [client for name, client in load_clients().items() if name in (arguments.client or [name])]
    _FOLDER.mkdir(exist_ok=True)
    try:
        results = list(_results(clients, arguments, _FOLDER))
    finally:
        if not arguments.keep:
            shutil.rmtree(_FOLDER, ignore_errors=True)
    table = render(results)
    print(table)
    if arguments.output:
        arguments.output.write_text(table + "\n", encoding="utf-8")
    return 1 if any(result.outcome == FAILED for result in results) else 0


def _results(clients: Sequence[Client], arguments: argparse.Namespace, folder: Path) -> Iterator[Result]:
    """The lenient clients come last, with a server of their own, unless there is a server for all."""
    installer = Installer.create(folder)
    groups = [[client for client in clients if client.lenient == lenient] for lenient in (False, True)]
    for group in filter(None, groups):
        waiting = list(group)
        try:
            with _target(arguments, folder, group[0].lenient) as target:
                print(f"asking {target.url} without a client …", file=sys.stderr)
                target.check()
                while waiting:
                    client = waiting.pop(0)
                    yield _result(client, target, installer, folder / client.name, arguments.keep)
        except (TargetError, ServerError) as error:
            _print_end(folder / "server.log")
            if len(waiting) == len(clients):
                raise
            yield from (Result(client, FAILED, 0.0, shorten(str(error))) for client in waiting)


@contextmanager
def _target(arguments: argparse.Namespace, folder: Path, lenient: bool) -> Iterator[Target]:
    if arguments.url:
        yield Target(arguments.url, arguments.token)
        return
    with serving(folder, lenient) as target:
        yield target


def _result(client: Client, target: Target, installer: Installer, folder: Path, keep: bool) -> Result:
    print(f"{client.name} {client.version} … ", end="", file=sys.stderr, flush=True)
    result = run_client(client, target, installer, folder)
    print(result.outcome, file=sys.stderr)
    if result.outcome == FAILED:
        for log in (folder / "log.txt", folder / "server.log"):
            _print_end(log)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _print_end(log: Path) -> None:
    if log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print(*lines[-_LOG_LINES:], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
