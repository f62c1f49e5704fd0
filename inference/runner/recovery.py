"""Runs steps. If a step fails, finds the sequences that cannot be computed, so that all others go on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from inference.interface.errors import in_one_line
from inference.runner.differentiation import differentiate
from inference.runner.model_runner import ModelRunner, SampledToken, Step
from inference.runner.step_watch import StepWatch
from inference.scheduling.probe import Derivative
from inference.scheduling.sequence import Sequence
from inference.tensor_parallel.errors import BrokenGroupError

_log = logging.getLogger("tiller.worker")

_Result = TypeVar("_Result")

_MAX_ATTEMPTS = 48
"""Limit for the attempts at one step. It suffices to find 3 bad sequences among 256. The rest then fails."""
_MAX_LOST_STEPS = 3
"""The engine is broken after this many steps in a row that compute nothing."""


class BrokenEngineError(Exception):
    """Several steps in a row have computed nothing."""


@dataclass(frozen=True)
class StepOutcome:
    """The result of a step."""

    sampled: list[SampledToken] = field(default_factory=list)
    failed: list[Sequence] = field(default_factory=list)
    """Scheduled sequences that could not be computed."""


class StepRunner:
    def __init__(self, runner: ModelRunner, watch: StepWatch) -> None:
        self._runner = runner
        self._watch = watch
        self._lost_steps = 0

    def launch(self, scheduled: list[Sequence]) -> Step | None:
        """Returns None if the launch fails; `finish` then tries parts. Raises like `finish`."""
        return self._try(lambda: self._runner.launch(scheduled), scheduled)

    def launch_after(self, step: Step) -> Step | None:
        """Returns None if the launch fails; this changes no sequence. Raises like `finish`."""
        return self._try(lambda: self._runner.launch_after(step), step.sequences)

    def finish(self, scheduled: list[Sequence], step: Step | None) -> StepOutcome:
        """Waits for a step. If it failed, runs its sequences again in halves, down to single sequences.

        A failed attempt leaves the sequences unchanged, including their random numbers. Raises
        BrokenEngineError if several steps in a row have computed nothing, torch.AcceleratorError, and
        BrokenGroupError.
        """
        outcome = StepOutcome()
        sampled = self._try(step.read, scheduled) if step else None
        if sampled is None:
            self._try_parts(scheduled, outcome)
        else:
            outcome.sampled.extend(sampled)
        self._count_lost_steps(lost=len(outcome.failed) == len(scheduled))
        return outcome

    def differentiate(self, derivative: Derivative) -> str | None:
        """Returns why the derivative could not be computed, or None. Raises torch.AcceleratorError."""
        try:
            with self._watch.computing(derivative.num_tokens):
                differentiate(self._runner.model, derivative)
        except torch.AcceleratorError:
            raise  # as in `_try`
        except Exception as error:  # any kind: out of memory, an operation without a derivative
            _log.exception("a training's derivatives cannot be computed")
            return in_one_line(error)
        return None

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
        """Returns the result of `act`, or None if it fails. Raises what the engine cannot recover from."""
        tokens = max(sum(sequence.num_scheduled_tokens for sequence in sequences), 1)
        try:
            with self._watch.computing(tokens):
                return act()
        except torch.AcceleratorError:
            raise  # The device is unusable for the rest of the process's life.
        except BrokenGroupError:
            raise  # So are the other processes.
        except Exception as error:  # any kind: out of memory, a kernel's error, a bug
            if len(sequences) == 1:
                request_id = sequences[0].request_id
                what = f"request {request_id}" if request_id else "a training or a reading"
                _log.exception(
                    "%(what)s cannot be computed", {"what": what, "request_id": request_id or None}
                )
            else:
                _log.warning("a step of %d sequences failed: %r", len(sequences), error)
            return None

    def _count_lost_steps(self, lost: bool) -> None:
        self._lost_steps = self._lost_steps + 1 if lost else 0
        if self._lost_steps >= _MAX_LOST_STEPS:
            raise BrokenEngineError(f"{self._lost_steps} steps in a row have computed nothing")
