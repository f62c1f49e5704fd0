"""Runs `tiller` with the faulty worker."""

import asyncio
import sys

from app import cli
from app.workers import process
from inference.interface.config import EngineConfig


async def start(endpoint: str, config: EngineConfig) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "tests.e2e.faulty_worker", endpoint)
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, start_new_session=True)


if __name__ == "__main__":
    process._start_process = start
    cli.main()
