"""The worker process that a gateway starts: one engine behind a socket.

The gateway starts it as `python -m inference.worker ENDPOINT`, and sends an EngineConfig in JSON as the first
frame. The worker exits when its stdin closes, which means that the gateway has exited. Its stdout carries the
heartbeat.
"""

import logging
import signal
import sys
from pathlib import Path

import msgspec
import zmq

from inference.heartbeat import Heartbeat
from inference.interface import protocol
from inference.interface.collector import keeping_all
from inference.interface.config import EngineConfig
from inference.interface.logs import set_up_logging
from inference.links.parent import ParentLink

with keeping_all():
    from inference.building import build_engine
    from inference.process import end_with_stdin, exit_at_once, hide_progress_bars, one_line, take_stdout
    from inference.worker_loop import WorkerLoop, serve

_log = logging.getLogger("tiller.worker")


def _remove_socket(endpoint: str) -> None:
    """The gateway removes these files, unless it was killed just after it started us."""
    file = Path(endpoint.removeprefix("ipc://"))
    file.unlink()
    file.parent.rmdir()


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The gateway handles Ctrl-C and then stops the worker.
    signal.signal(signal.SIGTERM, exit_at_once)
    heartbeat = Heartbeat(take_stdout())
    heartbeat.start()
    endpoint = sys.argv[1]
    end_with_stdin(lambda: _remove_socket(endpoint))
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.linger = 1000
        socket.connect(endpoint)
        config = msgspec.json.decode(socket.recv(), type=EngineConfig)
        model = {"model": config.log.model} if config.log.model else {}
        set_up_logging(config.log, **model, worker=config.replica)
        hide_progress_bars()
        return _start(config, socket, heartbeat)


def _start(config: EngineConfig, socket: zmq.Socket[bytes], heartbeat: Heartbeat) -> int:
    try:
        engine, info = build_engine(config)
    except Exception as error:
        _log.debug("the worker could not start", exc_info=True)
        socket.send(protocol.encode(protocol.StartFailed(one_line(error))))
        return 1
    loop = WorkerLoop(engine, ParentLink(socket))
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    socket.send(protocol.encode(protocol.Started(info)))
    heartbeat.watch(engine.watch)
    return serve(engine, loop)


if __name__ == "__main__":
    sys.exit(main())
