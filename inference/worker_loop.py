"""The loop of a worker process: takes commands, steps the engine, sends its reports. Knows no sockets."""

import logging
import math
import time

import msgspec

from inference.engine import Engine
from inference.interface.concepts import (
    ExportVectors,
    ForgetConcept,
    PrioritizeTraining,
    ReadTexts,
    SendDirection,
    TakeDirection,
    TrainConcept,
)
from inference.interface.protocol import EngineStats, StepReport
from inference.interface.requests import Abort, GenerationRequest, SubmitResult
from inference.links.link import Link

_log = logging.getLogger("tiller.worker")

_IDLE_POLL_MILLISECONDS = 1000
_STATS_SECONDS = 0.5


def serve(engine: Engine, loop: "WorkerLoop") -> int:
    """Runs the loop to its end, and closes the engine. Returns the exit status of the process."""
    try:
        loop.run()
    except Exception:
        _log.critical("the worker exits after an error that it cannot recover from", exc_info=True)
        return 1
    finally:
        engine.close()
    return 0


class WorkerLoop:
    """Passes commands from the link to the engine, and sends its reports back."""

    def __init__(self, engine: Engine, link: Link) -> None:
        self._engine = engine
        self._link = link
        self._end = math.inf
        """By time.monotonic(): when `run` returns at the latest. Before, it returns once no request runs."""
        self._has_left = False
        self._stats = EngineStats()
        self._stats_sent = 0.0
        self._checked = True
        """Whether the engine's bookkeeping was checked since it last worked."""

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Makes `run` return after the current step, or once no request runs, at most after this time."""
        self._end = min(self._end, time.monotonic() + drain_seconds)

    def run(self) -> None:
        """Runs the engine until `stop` is called. Raises the engine's errors; its state is then invalid."""
        while not self._has_ended:
            self._leave_once()
            self._engine.watch.turn()
            was_idle = self._engine.is_idle
            self._send(StepReport(submit_results=self._take_commands()))
            was_idle &= self._engine.is_idle
            report = self._engine.step()
            self._send(msgspec.structs.replace(report, stats=self._changed_stats()))
            self._check_when_idle(was_idle)

    @property
    def _has_ended(self) -> bool:
        if self._end == math.inf:
            return False
        return time.monotonic() >= self._end or not self._engine.has_requests

    def _leave_once(self) -> None:
        if self._end < math.inf and not self._has_left:
            self._has_left = True
            self._link.leave()

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
            self._link.send(report)

    def _take_commands(self) -> list[SubmitResult]:
        """Carries out the commands that have arrived. Waits for a command only while the engine is idle."""
        submit_results = []
        timeout = _IDLE_POLL_MILLISECONDS if self._engine.is_idle else 0
        while self._link.poll(timeout):
            command = self._link.receive()
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
                case SendDirection():
                    self._engine.trainer.send(command)
                case TakeDirection():
                    self._engine.trainer.take(command)
                case ReadTexts():
                    self._engine.measuring.read_texts(command)
            timeout = 0
        return submit_results
