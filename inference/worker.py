"""The worker process: one engine behind a socket.

The gateway starts it as `python -m inference.worker ENDPOINT`, and sends an EngineConfig in JSON as the first
frame. The worker exits when its stdin closes, which means that the gateway has exited. Its stdout carries the
heartbeat.
"""

import logging
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec
import torch
import zmq

from inference.engine import Engine
from inference.heartbeat import Heartbeat
from inference.interface import protocol
from inference.interface.concepts import (
    ExportVectors,
    ForgetConcept,
    PrioritizeTraining,
    ReadTexts,
    TrainConcept,
)
from inference.interface.config import EngineConfig
from inference.interface.logs import set_up_logging
from inference.interface.protocol import EngineStats, ModelInfo, StepReport
from inference.interface.requests import Abort, GenerationRequest, SubmitResult
from inference.models import sources
from inference.models.end_tokens import read_end_token_ids
from inference.process import end_with_stdin, hide_progress_bars, one_line, take_stdout
from inference.runner.devices import choose_device, set_threads
from inference.runner.leading import leading
from inference.runner.loading import load
from inference.runner.model_runner import ModelRunner
from inference.steering.direction_files import DirectionFiles
from inference.steering.training import TRAINING_VERSION

logger = logging.getLogger("tiller.worker")

_IDLE_POLL_MILLISECONDS = 1000
_STATS_SECONDS = 0.5


class Worker:
    """Passes commands from the socket to the engine, and sends its reports back."""

    def __init__(self, engine: Engine, socket: zmq.Socket[bytes]) -> None:
        self._engine = engine
        self._socket = socket
        self._stopping = False
        self._stats = EngineStats()
        self._stats_sent = 0.0
        self._checked = True
        """Whether the engine's bookkeeping was checked since it last worked."""

    def stop(self) -> None:
        """Makes `run` return after the current step."""
        self._stopping = True

    def run(self) -> None:
        """Runs the engine until `stop` is called. Raises the engine's errors; its state is then invalid."""
        while not self._stopping:
            self._engine.watch.turn()
            was_idle = self._engine.is_idle
            self._send(StepReport(submit_results=self._take_commands()))
            was_idle &= self._engine.is_idle
            report = self._engine.step()
            self._send(msgspec.structs.replace(report, stats=self._changed_stats()))
            self._check_when_idle(was_idle)

    def _check_when_idle(self, was_idle: bool) -> None:
        """Checks the engine after a second without work. A check takes 20 ms if the KV cache is large.

        `was_idle`: whether the engine had no work while this turn waited for commands.
        """
        if not was_idle:
            self._checked = False
        elif not self._checked:
            self._engine.check_integrity()
            self._checked = True

    def _changed_stats(self) -> EngineStats | None:
        """The engine's stats, or None if they have not changed, or if others were sent just before."""
        now = time.monotonic()
        if now - self._stats_sent < _STATS_SECONDS and not self._engine.is_idle:
            return None
        stats = self._engine.stats
        if stats == self._stats:
            return None
        self._stats, self._stats_sent = stats, now
        return stats

    def _send(self, report: StepReport) -> None:
        if report != StepReport():
            self._socket.send(protocol.encode(report))

    def _take_commands(self) -> list[SubmitResult]:
        """Carries out the commands that have arrived. Waits for a command only while the engine is idle."""
        submit_results = []
        timeout = _IDLE_POLL_MILLISECONDS if self._engine.is_idle else 0
        while self._socket.poll(timeout):
            command = protocol.decode_command(self._socket.recv())
            match command:
                case GenerationRequest():
                    submit_results.append(self._engine.add(command))
                case Abort():
                    self._engine.abort(command.request_id, command.index)
                case TrainConcept():
                    self._engine.trainer.add(command)
                case PrioritizeTraining():
                    self._engine.trainer.prioritize(command.concept)
                case ForgetConcept():
                    self._engine.trainer.forget(command.concept)
                case ExportVectors():
                    self._engine.trainer.export(command)
                case ReadTexts():
                    self._engine.measuring.read_texts(command)
            timeout = 0
        return submit_results


def build_engine(config: EngineConfig) -> tuple[Engine, ModelInfo]:
    """Loads the model and builds the engine. `Engine.close` ends what it has started.

    Raises ConfigError, SourceError, UnsupportedModelError, KernelError, BrokenGroupError, OSError and
    ValueError.
    """
    set_threads(config)
    device = choose_device(config)
    cache = Path(config.cache_directory).expanduser()
    directory = sources.resolve(config.source, cache, config.revision)
    logger.info("loading %s on %s", directory.name, device)
    with leading(config, directory, device) as (group, leader):
        loaded, digest, backend = load(config, directory, group)
        runner = ModelRunner(loaded, config, backend, leader)
    engine = Engine(runner, config, _direction_files(cache, digest, loaded.dtype, config))
    info = ModelInfo(
        directory=str(directory),
        context_length=engine.context_length,
        context_limit=engine.context_limit,
        vocab_size=loaded.vocab_size,
        end_token_ids=read_end_token_ids(directory),
        weights_digest=digest,
        dtype=_name(loaded.dtype),
        quantization=config.quantization,
        num_layers=len(loaded.layers),
        hidden_size=loaded.hidden_size,
    )
    return engine, info


def _direction_files(
    cache: Path, weights_digest: str, dtype: torch.dtype, config: EngineConfig
) -> DirectionFiles:
    """The cache of directions.

    Each combination of weights, dtype, configured blocks and training has its own. Directions are trained on
    what the model computes, which depends on the dtype, though the weights' digest does not.
    """
    rounding = [] if config.quantization == "none" else [config.quantization]
    blocks = map(str, config.steering_blocks or ())
    name = "-".join([weights_digest[:32], _name(dtype), *blocks, *rounding, f"q{config.training_questions}"])
    return DirectionFiles(cache / "steering" / f"v{TRAINING_VERSION}" / name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _remove_socket(endpoint: str) -> None:
    """The gateway removes these files, unless it was killed just after it started us."""
    file = Path(endpoint.removeprefix("ipc://"))
    file.unlink()
    file.parent.rmdir()


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The gateway handles Ctrl-C and then stops the worker.
    signal.signal(signal.SIGTERM, _exit_at_once)
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
        return _serve(config, socket, heartbeat)


def _serve(config: EngineConfig, socket: zmq.Socket[bytes], heartbeat: Heartbeat) -> int:
    try:
        engine, info = build_engine(config)
    except Exception as error:
        logger.debug("the worker could not start", exc_info=True)
        socket.send(protocol.encode(protocol.StartFailed(one_line(error))))
        return 1
    worker = Worker(engine, socket)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    socket.send(protocol.encode(protocol.Started(info)))
    heartbeat.watch(engine.watch)
    try:
        worker.run()
    except Exception:
        logger.critical("the worker exits after an error that it cannot recover from", exc_info=True)
        return 1
    finally:
        engine.close()
    return 0


def _exit_at_once(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
