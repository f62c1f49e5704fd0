"""Provides a server to benchmarks: one that already runs, or a new one as the quick start configures it."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from app.bench.client import Target, parse_target
from benchmarks.peers.processes import ServerProcess
from benchmarks.peers.servers import Setup, tiller


def serving_for(name: str, arguments: argparse.Namespace) -> AbstractContextManager[Target]:
    """Calls `serving` with the options of `add_server_options`. Creates the output folder."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    return serving(
        arguments.url,
        arguments.token,
        cache=arguments.cache_directory,
        log=arguments.output / f"{name}-server.log",
        slots=arguments.concurrency,
        name=name,
    )


@contextmanager
def serving(
    url: str | None, token: str | None, *, cache: Path, log: Path, slots: int, name: str
) -> Iterator[Target]:
    """Yields the server at `url`. Without a URL, starts a server that ends with the context.

    Raises BenchError and ServerError.
    """
    if url:
        yield parse_target(url, token, model=None)
        return
    with tempfile.TemporaryDirectory(prefix=f"tiller-{name}-") as scratch:
        setup = Setup(
            peers=Path(scratch), cache=cache.expanduser(), scratch=Path(scratch), slots=slots, context=0
        )
        server = tiller(setup)
        process = ServerProcess(server.command, server.environment, log)
        try:
            process.wait_until_ready(server.url)
            yield Target("tiller", server.url)
        finally:
            process.terminate()
