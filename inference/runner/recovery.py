"""Runs steps. When one fails, finds the sequences that cannot be computed, so that the others go on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from inference.runner.model_runner import ModelRunner, SampledToken, Step
from inference.runner.step_watch import StepWatch
from inference.scheduling.sequence import Sequence

_log = logging.getLogger("tiller.worker")

_Result = TypeVar("_Result")

_MAX_ATTEMPTS = 48
"""Of one step. Three sequences among 256 are found in less; what is then left fails together."""
_MAX_LOST_STEPS = 3


class BrokenEngineError(Exception):
    """Nothing can be computed any more, whatever it is."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step brought."""

    sampled: list[SampledToken] = field(default_factory=list)
    failed: list[Sequence] = field(default_factory=list)
    """Scheduled in vain: nothing of them was computed."""


class StepRunner:
    def __init__(self, runner: ModelRunner, watch: StepWatch) -> None:
        self._runner = runner
        self._watch = watch
        self._lost_steps = 0

    def launch(self, scheduled: list[Sequence]) -> Step | None:
        """None: it failed, and `finish` will try parts of it. Raises torch.AcceleratorError."""
        return self._try(lambda: self._runner.launch(scheduled), scheduled)

    def launch_after(self, step: Step) -> Step | None:
        """None: it failed, and nothing is lost by that. Raises torch.AcceleratorError."""
        return self._try(lambda: self._runner.launch_after(step), step.sequences)

    def finish(self, scheduled: list[Sequence], step: Step | None) -> StepOutcome:
        """Waits for what was launched; what fails together is tried in halves, down to single sequences.

        A sequence is left as it was by an attempt that failed, down to its random numbers. Raises
        BrokenEngineError when nothing at all has been computed for some steps, and torch.AcceleratorError.
        """
        outcome = StepOutcome()
        sampled = self._try(step.read, scheduled) if step else None
        if sampled is None:
            self._try_parts(scheduled, outcome)
        else:
            outcome.sampled.extend(sampled)
        self._judge(lost=len(outcome.failed) == len(scheduled))
        return outcome

    def _try_parts(self, scheduled: list[Sequence], outcome: StepOutcome) -> None:
        failed, attempts = [scheduled], 1
        while failed:
            part = failed.pop()
            if len(part) == 1 or attempts >= _MAX_ATTEMPTS:
                outcome.failed.extend(part)
                continue
            for half in (part[len(part) // 2 :], part[: len(part) // 2]):
                attempts += 1
                sampled = self._try(partial(self._run, half), half)
                if sampled is None:
                    failed.append(half)
                else:
                    outcome.sampled.extend(sampled)

    def _run(self, part: list[Sequence]) -> list[SampledToken]:
        return self._runner.launch(part).read()

    def _try(self, act: Callable[[], _Result], sequences: list[Sequence]) -> _Result | None:
        tokens = max(sum(sequence.num_scheduled_tokens for sequence in sequences), 1)
        try:
            with self._watch.computing(tokens):
                return act()
        except torch.AcceleratorError:
            raise  # The device is unusable for the rest of the process's life.
        except Exception as error:  # of any kind: out of memory, a kernel's, a bug's
            if len(sequences) == 1:
                request_id = sequences[0].request_id
                what = f"request {request_id}" if request_id else "a training"
                _log.exception(
                    "%(what)s cannot be computed", {"what": what, "request_id": request_id or None}
                )
            else:
                _log.warning("a step of %d sequences failed: %r", len(sequences), error)
            return None

    def _judge(self, lost: bool) -> None:
        self._lost_steps = self._lost_steps + 1 if lost else 0
        if self._lost_steps >= _MAX_LOST_STEPS:
            raise BrokenEngineError(f"nothing could be computed in {self._lost_steps} steps")
