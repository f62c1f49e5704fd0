"""Like benchmarks.gateway.worker, but a worker that runs on its own: over TCP, with encryption.

python -m benchmarks.gateway.standing MODEL_DIRECTORY PIPE ADDRESS KEY_FILE
"""

import asyncio
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import zmq

from app import __version__
from app.workers.replicas import RunningEngine
from app.workers.starting import connect_workers
from benchmarks.gateway.model import load_script, model_info
from benchmarks.gateway.steps import open_pipe
from benchmarks.gateway.worker import serve
from inference.interface import text_files
from inference.interface.curve import accepting_only
from inference.interface.protocol import Hello, Started
from inference.interface.worker_key import create_key, read_key
from inference.links.gateways import GatewayLinks

_MODEL = "scripted"
_CAPACITY = 100_000


@asynccontextmanager
async def run_standing(directory: Path, pipe: Path) -> AsyncIterator[RunningEngine]:
    """Starts such a worker, and connects to it. Takes the place of app.workers.starting.run_replicas."""
    with tempfile.TemporaryDirectory(prefix="tiller-bench-") as scratch:
        key = Path(scratch) / "key"
        create_key(key)
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        command = ("-m", "benchmarks.gateway.standing", str(directory), str(pipe), address, str(key))
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=asyncio.subprocess.PIPE
        )
        try:
            async with connect_workers(_MODEL, [address], read_key(key), Path(scratch)) as engine:
                yield engine
        finally:
            process.kill()
            await process.wait()


def main() -> None:
    directory, pipe, address, key = sys.argv[1:]
    model = model_info(Path(directory))
    names = text_files.hash_files(Path(directory))
    files = {sha256: Path(directory) / name for name, sha256 in names.items()}
    script = load_script(model)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.set_hwm(0)
        router.linger = 0
        with accepting_only(router, read_key(Path(key))):
            router.bind(address)
            started = Started(model, _CAPACITY, names)
            links = GatewayLinks(router, Hello(__version__, _MODEL), started, files, script.has)
            serve(router, links, script, open_pipe(Path(pipe)))


if __name__ == "__main__":
    main()
