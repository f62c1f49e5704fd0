"""Stand-ins for the measuring process of the GPU benchmark. Imports no torch, so that they start fast."""

import os
import time
from multiprocessing.connection import Connection

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.plan import Options
from benchmarks.gpu.process import Ended


def serve(connection: Connection, options: Options) -> None:
    """Answers each part with a figure that names this process. Some kinds of parts die or hang."""
    while True:
        part, _ = connection.recv()
        connection.send(Figure(part.model, str(os.getpid()), "", 1.0))
        if part.kind == "dies":
            os._exit(1)
        if part.kind == "hangs":
            time.sleep(600)
        connection.send(Ended("a fault of the device", reusable=False) if part.kind == "fails" else Ended())
