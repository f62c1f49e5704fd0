"""A follower's process: one of several that share a model. It does what its leader, the worker, tells it.

The worker starts it as `python -m inference.follower ENDPOINT`, and sends a Start and then one Forward for
each run of the model. The follower ends when its stdin closes, which means that the worker has ended. Its
stdout carries the heartbeat.
"""

import logging
import shutil
import signal
import sys
import time
from pathlib import Path

import msgspec
import zmq

from inference.heartbeat import Heartbeat
from inference.interface.collector import keeping_all
from inference.interface.config import LogConfig
from inference.interface.logs import set_up_logging

with keeping_all():
    from inference.process import end_with_parent, end_with_stdin, hide_progress_bars, one_line, take_stdout
    from inference.runner.devices import choose_device, set_threads
    from inference.runner.follower import FollowerRunner
    from inference.runner.loading import load
    from inference.tensor_parallel.group import Group
    from inference.tensor_parallel.messages import Forward, Start, decode

logger = logging.getLogger("tiller.worker")

_SECONDS_FOR_OTHERS = 1.0
"""If another process is the cause of an error here, the worker ends this process within this time."""


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # The worker decides when the group ends.
    Heartbeat(take_stdout()).start()
    endpoint = sys.argv[1]
    directory = Path(endpoint.removeprefix("ipc://")).parent
    end_with_stdin(lambda: shutil.rmtree(directory))  # the worker could not do it if it was killed
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.linger = 0
        socket.connect(endpoint)
        start = decode(socket.recv())
        assert isinstance(start, Start)  # noqa: S101 - for the type checker
        set_up_logging(_quieter(start.config.log), worker=start.config.replica, process=start.number)
        hide_progress_bars()
        try:
            _follow(start, directory, socket)
        except Exception as error:
            time.sleep(_SECONDS_FOR_OTHERS)
            logger.error("a process of the tensor parallel group ends: %s", one_line(error))
            logger.debug("the error", exc_info=True)
    return 1


def _follow(start: Start, directory: Path, socket: "zmq.Socket[bytes]") -> None:
    """Loads this process's part of the model, and runs it until the process ends."""
    config = start.config
    set_threads(config)
    group = Group(start.number, config.tensor_parallel, choose_device(config, start.number))
    group.join(directory)
    loaded = load(config, Path(start.directory), group)
    runner = FollowerRunner(loaded.model, config, loaded.backend)
    end_with_parent()  # not before, so that this process can remove the directory
    while True:
        message = decode(socket.recv())
        assert isinstance(message, Forward)  # noqa: S101 - for the type checker
        runner.run(message)


def _quieter(log: LogConfig) -> LogConfig:
    """The worker's own lines say the same as this process's would. So only warnings are logged."""
    level = "warning" if log.level == "info" else log.level
    return msgspec.structs.replace(log, level=level, bars=False)


if __name__ == "__main__":
    sys.exit(main())
