"""Runs steps. When one fails, finds the sequences that cannot be computed, so that the others go on."""

import logging
from dataclasses import dataclass, field

import torch

from inference.model_runner import ModelRunner, SampledToken
from inference.sequence import Sequence

_log = logging.getLogger("tiller.worker")

_MAX_ATTEMPTS = 48
"""Of one step. Three sequences among 256 are found in less; what is then left fails together."""
_MAX_LOST_STEPS = 3


class BrokenEngineError(Exception):
    """Nothing can be computed any more, whatever it is."""


@dataclass(frozen=True)
class Outcome:
    """What a step brought."""

    sampled: list[SampledToken] = field(default_factory=list)
    failed: list[Sequence] = field(default_factory=list)
    """Scheduled in vain: nothing of them was computed."""


class StepRunner:
    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._lost_steps = 0

    def run(self, scheduled: list[Sequence]) -> Outcome:
        """Computes what is scheduled; what fails together is tried in halves, down to single sequences.

        A sequence is left as it was by an attempt that failed, down to its random numbers. Raises
        BrokenEngineError when nothing at all has been computed for some steps, and torch.AcceleratorError.
        """
        outcome = Outcome()
        parts, attempts = [scheduled], 0
        while parts:
            part = parts.pop()
            attempts += 1
            alone = len(part) == 1 or attempts >= _MAX_ATTEMPTS
            if self._try(part, outcome, alone):
                continue
            if alone:
                outcome.failed.extend(part)
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
        self._judge(lost=len(outcome.failed) == len(scheduled))
        return outcome

    def _try(self, part: list[Sequence], outcome: Outcome, last: bool) -> bool:
        try:
            outcome.sampled.extend(self._runner.run(part))
        except torch.AcceleratorError:
            raise  # The device is unusable for the rest of the process's life.
        except Exception as error:  # of any kind: out of memory, a kernel's, a bug's
            if last:
                names = {sequence.request_id or "a training" for sequence in part}
                _log.exception("%s cannot be computed", ", ".join(sorted(names)))
            else:
                _log.warning("a step of %d sequences failed: %r", len(part), error)
            return False
        return True

    def _judge(self, lost: bool) -> None:
        self._lost_steps = self._lost_steps + 1 if lost else 0
        if self._lost_steps >= _MAX_LOST_STEPS:
            raise BrokenEngineError(f"nothing could be computed in {self._lost_steps} steps")
