"""Runs the gateway as `tiller serve` does, but with a stand-in engine.

    python -m benchmarks.gateway.server ENGINE MODEL_DIRECTORY PIPE serve --port 8000 …

The arguments after PIPE are the command line of `tiller`.
"""

import asyncio
import sys
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from unittest import mock

from app import cli, startup
from app.workers import process
from app.workers.replicas import RunningEngine
from benchmarks.gateway.inside import InsideEngine, run_inside
from benchmarks.gateway.model import load_script, model_info
from benchmarks.gateway.ray_actor import RayEngine, run_ray, run_serve
from benchmarks.gateway.standing import run_standing
from inference.interface.config import EngineConfig

ENGINES = {
    "worker": "another process, behind the socket as in production",
    "standing": "another process that runs on its own, over TCP and with encryption, as on another host",
    "inside": "an object in the gateway, without process, socket and frames",
    "ray": "an actor of Ray, which sends each token through a streaming call",
    "serve": "the same behind a handle of Ray Serve (needs `pip install 'ray[serve]'`)",
}


def main() -> None:
    engine, directory, pipe, *command = sys.argv[1:]
    sys.argv = ["tiller", *command]
    uses = {
        "worker": use_worker,
        "standing": use_standing,
        "inside": use_inside,
        "ray": use_ray,
        "serve": use_serve,
    }
    with uses[engine](Path(directory), Path(pipe)):
        cli.main()


def use_worker(directory: Path, pipe: Path) -> AbstractContextManager[object]:
    """Within the context, the gateway starts the stand-in as its worker process."""

    async def start(endpoint: str, config: EngineConfig) -> asyncio.subprocess.Process:  # noqa: ARG001
        command = ("-m", "benchmarks.gateway.worker", str(directory), str(pipe), endpoint)
        end = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(sys.executable, *command, stdin=end, stdout=end)

    return mock.patch.object(process, "_start_process", start)


def use_standing(directory: Path, pipe: Path) -> AbstractContextManager[object]:
    """Within the context, the gateway connects to the stand-in as to a worker that runs on its own."""

    def run(config: EngineConfig) -> AbstractAsyncContextManager[RunningEngine]:  # noqa: ARG001
        return run_standing(directory, pipe)

    return mock.patch.object(startup, "run_replicas", run)


def use_inside(directory: Path, pipe: Path) -> AbstractContextManager[object]:
    """Within the context, the gateway runs the stand-in inside its own process."""

    def run(config: EngineConfig) -> AbstractAsyncContextManager[InsideEngine]:  # noqa: ARG001
        model = model_info(directory)
        return run_inside(model, load_script(model), pipe)

    return mock.patch.object(startup, "run_replicas", run)


def use_ray(directory: Path, pipe: Path) -> AbstractContextManager[object]:
    """Within the context, the gateway calls the stand-in in an actor of Ray."""

    def run(config: EngineConfig) -> AbstractAsyncContextManager[RayEngine]:  # noqa: ARG001
        return run_ray(directory, pipe)

    return mock.patch.object(startup, "run_replicas", run)


def use_serve(directory: Path, pipe: Path) -> AbstractContextManager[object]:
    """Within the context, the gateway calls the stand-in through a handle of Ray Serve."""

    def run(config: EngineConfig) -> AbstractAsyncContextManager[RayEngine]:  # noqa: ARG001
        return run_serve(directory, pipe)

    return mock.patch.object(startup, "run_replicas", run)


if __name__ == "__main__":
    main()
