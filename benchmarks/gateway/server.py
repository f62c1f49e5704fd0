"""Runs the gateway as `tiller serve` does, but with a stand-in engine.

    python -m benchmarks.gateway.server ENGINE MODEL_DIRECTORY PIPE serve --port 8000 …

The arguments after PIPE are the command line of `tiller`.
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from unittest import mock

from app import cli, startup
from app.workers import process
from app.workers.replicas import RunningEngine
from benchmarks.gateway.inside import run_inside
from benchmarks.gateway.ray_actor import run_ray, run_serve
from benchmarks.gateway.standing import run_standing
from inference.interface.config import EngineConfig

ENGINES = {
    "worker": "another process, behind the socket as in production",
    "standing": "another process that runs on its own, over TCP and with encryption, as on another host",
    "inside": "an object in the gateway, without process, socket and frames",
    "ray": "an actor of Ray, which sends each token through a streaming call",
    "serve": "the same behind a handle of Ray Serve (needs `pip install 'ray[serve]'`; not by default)",
}
DEFAULT_ENGINES = tuple(engine for engine in ENGINES if engine != "serve")


def main() -> None:
    engine, directory, pipe, *command = sys.argv[1:]
    sys.argv = ["tiller", *command]
    with use(engine, Path(directory), Path(pipe)):
        cli.main()


def use(engine: str, directory: Path, pipe: Path) -> AbstractContextManager[object]:
    """Within the context, the gateway starts or finds this one of ENGINES instead of its own."""
    if engine == "worker":
        return _use_worker(directory, pipe)
    runs: dict[str, Callable[[Path, Path], AbstractAsyncContextManager[RunningEngine]]] = {
        "standing": run_standing,
        "inside": run_inside,
        "ray": run_ray,
        "serve": run_serve,
    }
    run = runs[engine]

    def run_replicas(config: EngineConfig) -> AbstractAsyncContextManager[RunningEngine]:  # noqa: ARG001
        return run(directory, pipe)

    return mock.patch.object(startup, "run_replicas", run_replicas)


def _use_worker(directory: Path, pipe: Path) -> AbstractContextManager[object]:
    async def start(endpoint: str, config: EngineConfig) -> asyncio.subprocess.Process:  # noqa: ARG001
        command = ("-m", "benchmarks.gateway.worker", str(directory), str(pipe), endpoint)
        end = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(sys.executable, *command, stdin=end, stdout=end)

    return mock.patch.object(process, "_start_process", start)


if __name__ == "__main__":
    main()
