"""The worker, with steps that fail if a request asks for it by a special number of `max_tokens`."""

import os
import signal
import sys
import threading

import torch

from inference import worker
from inference.runner.model_runner import ModelRunner, Step
from inference.scheduling.sequence import Sequence

RAISE, NO_MEMORY, HANG, FREEZE, KILL = range(9001, 9006)
TOKENS_BEFORE = 5
"""Number of tokens that a request gets before its fault."""

_launch = ModelRunner.launch


def launch(self: ModelRunner, scheduled: list[Sequence]) -> Step:
    for sequence in scheduled:
        if sequence.num_output_tokens >= TOKENS_BEFORE:
            _misbehave(sequence.max_tokens)
    return _launch(self, scheduled)


def _misbehave(max_tokens: int) -> None:
    match max_tokens:
        case _ if max_tokens == RAISE:
            raise RuntimeError("a bug in an operation")
        case _ if max_tokens == NO_MEMORY:
            raise torch.OutOfMemoryError("out of memory")
        case _ if max_tokens == HANG:
            threading.Event().wait()
        case _ if max_tokens == FREEZE:
            os.kill(os.getpid(), signal.SIGSTOP)
        case _ if max_tokens == KILL:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    ModelRunner.launch = launch  # type: ignore[method-assign]
    sys.exit(worker.main())
