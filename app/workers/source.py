"""Where a supervised engine gets its workers from."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from app.workers.timing import Timing
from app.workers.worker_engine import WorkerEngine
from inference.interface.protocol import ModelInfo


class WorkerSource(Protocol):
    @property
    def name(self) -> str:
        """What the log calls its workers."""

    @property
    def capacity(self) -> int:
        """How many choices may run or wait in a worker."""

    def run(self, timing: Timing) -> AbstractAsyncContextManager[WorkerEngine]:
        """One worker, from when it has loaded the model. Raises StartError if it cannot serve."""

    def keep(self, model: ModelInfo) -> None:
        """Later workers must have this model, which the first one has loaded."""
