"""A worker process that is started on its own: gateways connect to it, perhaps from other hosts.

`tiller worker serve` runs `python -m inference.standing_worker`, with a StandingConfig in JSON on stdin.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import zmq

from inference.heartbeat import Heartbeat
from inference.interface import text_files
from inference.interface.collector import keeping_all
from inference.interface.config import ConfigError, StandingConfig
from inference.interface.curve import accepting_only
from inference.interface.logs import set_up_logging
from inference.interface.protocol import SILENT_SECONDS, Hello, ModelInfo, Started
from inference.interface.registry import Announce
from inference.interface.worker_key import read_key
from inference.links.announcing import Announcement, Announcer
from inference.links.gateways import GatewayLinks

with keeping_all():
    from inference.building import build_engine
    from inference.engine import Engine
    from inference.process import exit_at_once, hide_progress_bars, one_line
    from inference.worker_loop import WorkerLoop, serve

_log = logging.getLogger("tiller.worker")

_HEARTBEAT_MILLISECONDS = 1000


def main() -> int:
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=StandingConfig)
    model = {"model": config.engine.log.model} if config.engine.log.model else {}
    set_up_logging(config.engine.log, **model)
    hide_progress_bars()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, exit_at_once)
    try:
        with _listening(config) as socket:
            return _start(config, socket)
    except Exception as error:
        _log.debug("the worker could not start", exc_info=True)
        _log.error("the worker cannot start: %s", one_line(error))
        return 1


@contextmanager
def _listening(config: StandingConfig) -> Iterator[zmq.Socket[bytes]]:
    """A bound ROUTER socket. Gateways can connect, and wait until they are answered.

    Raises ConfigError if it cannot be bound.
    """
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.set_hwm(0)
        socket.linger = 1000
        socket.ipv6 = True
        # The other end may be gone without closing its connection.
        socket.heartbeat_ivl = _HEARTBEAT_MILLISECONDS
        socket.heartbeat_timeout = round(SILENT_SECONDS * 1000)
        if config.key_file is None:
            _bind(socket, config.endpoint)
            yield socket
            return
        with accepting_only(socket, read_key(Path(config.key_file))):
            _bind(socket, config.endpoint)
            yield socket


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"{endpoint}: {error.strerror}") from None


def _start(config: StandingConfig, socket: zmq.Socket[bytes]) -> int:
    """Serves until a signal ends it. Raises the errors of `build_engine`. Returns the exit status."""
    engine, info = build_engine(config.engine)
    loop = WorkerLoop(engine, _link(config, socket, engine, info))
    announcer = _announcer(config)

    def stop(*_: object) -> None:
        loop.stop(config.drain_seconds)
        if announcer is not None:
            announcer.leave()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    heartbeat = Heartbeat(os.open(os.devnull, os.O_WRONLY))  # only to end a step that hangs
    heartbeat.start()
    heartbeat.watch(engine.watch)
    _log.info("the worker serves at %s", config.endpoint)
    if announcer is not None:
        announcer.start()
    return serve(engine, loop)


def _announcer(config: StandingConfig) -> Announcer | None:
    if config.registry is None:
        return None
    key = read_key(Path(config.registry_key_file)) if config.registry_key_file else None
    announce = Announce(config.version, config.model, config.advertised)
    return Announcer(Announcement(config.registry, key, announce))


def _link(config: StandingConfig, socket: zmq.Socket[bytes], engine: Engine, info: ModelInfo) -> GatewayLinks:
    directory = Path(info.directory)
    names = text_files.hash_files(directory)
    started = Started(
        msgspec.structs.replace(info, directory=""),
        capacity=config.engine.max_running + config.engine.max_queued,
        files=names,
    )
    files = {sha256: directory / name for name, sha256 in names.items()}
    expected = Hello(config.version, config.model)
    return GatewayLinks(socket, expected, started, files, engine.has_request)


if __name__ == "__main__":
    sys.exit(main())
