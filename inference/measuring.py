"""The sequences that belong to no request: they measure texts for trainings and for readings of texts.

Passes the work of the trainer and of the text reading to the scheduler, and the results back. Keeps the
derivatives that a training needs until it is time for the next one.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

from inference.events import finish_reason
from inference.interface.concepts import ReadTexts
from inference.interface.requests import FinishReason
from inference.scheduling.block_manager import BlockManager
from inference.scheduling.probe import (
    MAX_TOKENS_BESIDE_REQUESTS,
    MAX_TOKENS_IN_FLIGHT,
    Answer,
    Derivative,
    Probe,
    TrainingWork,
)
from inference.scheduling.scheduler import Scheduler
from inference.scheduling.sequence import Sequence, build_answer_sequence, build_probe_sequence
from inference.steering.text_reading import TextReading
from inference.steering.trainer import Trainer


class Measuring:
    def __init__(
        self,
        trainer: Trainer,
        text_reading: TextReading,
        scheduler: Scheduler,
        block_manager: BlockManager,
        numbers: Iterator[int],
        *,
        max_tokens: int,
        vocab_size: int,
    ) -> None:
        """`numbers`: serial numbers of sequences. `max_tokens`: limit for a prompt and a text together."""
        self.trainer = trainer
        self.text_reading = text_reading
        self._scheduler = scheduler
        self._block_manager = block_manager
        self._numbers = numbers
        self._max_tokens = max_tokens
        self._vocab_size = vocab_size
        self._sequences: set[Sequence] = set()
        self._derivatives: deque[Derivative] = deque()
        self._handed_out = 0.0
        self._resume = 0.0
        """When the last derivative was handed out, and when requests have had as much time as it took."""

    @property
    def is_idle(self) -> bool:
        return not self._sequences and self.trainer.is_idle and self.text_reading.is_idle

    def queue_work(self, serving: bool) -> None:
        """Queues the next work of trainings and readings. `serving`: whether the engine has requests.

        They share one limit. While there is work of both, each gets half of it, so that neither waits for the
        other.
        """
        limit = MAX_TOKENS_BESIDE_REQUESTS if serving else MAX_TOKENS_IN_FLIGHT
        trains, reads = self.trainer.has_work(serving), self.text_reading.has_work
        share = limit // 2 if trains and reads else limit
        if reads:
            self._add(self.text_reading.next_work(self._room(limit, share, self.text_reading)))
        if trains:
            self._add(self.trainer.next_work(serving, self._room(limit, share, self.trainer)))

    def read_texts(self, command: ReadTexts) -> None:
        """Queues a reading of texts. Its result comes from `text_reading.take_results`."""
        if not self.trainer.knows(command.concept):
            self.text_reading.refuse(command.request_id)
        elif fault := self._fault(command):
            self.text_reading.refuse(command.request_id, fault)
        else:
            self.text_reading.add(command, self._scheduler.clock())

    def abort_reading(self, request_id: str) -> None:
        """Ends a reading of texts, without a result. Does nothing if there is no such reading."""
        dropped = self.text_reading.abort(request_id)
        for sequence in [sequence for sequence in self._sequences if sequence.probe in dropped]:
            self._end(sequence)

    def complete(self, sequence: Sequence) -> None:
        """Hands over the probe of a sequence that is computed."""
        assert sequence.probe is not None  # noqa: S101 - for the type checker
        if not sequence.probe.is_finite:
            self._block_manager.discard(sequence)
        self._end(sequence)
        self._owner(sequence.probe).complete(sequence.probe)

    def continue_answer(self, sequence: Sequence, token_id: int) -> None:
        """Adds a sampled token to the answer of a sequence, and hands the answer over when it is complete."""
        assert sequence.answer is not None  # noqa: S101 - for the type checker
        sequence.append(token_id)
        reason = finish_reason(sequence, token_id)
        if reason is not FinishReason.STOP:
            sequence.answer.token_ids.append(token_id)
        if reason is not None:
            self._end(sequence)
            self.trainer.complete(sequence.answer)

    def next_derivative(self, serving: bool) -> Derivative | None:
        """What to differentiate next. `serving`: requests run, and get half of the time."""
        now = self._scheduler.clock()
        if not self._derivatives or (serving and now < self._resume):
            return None
        self._handed_out = now
        return self._derivatives.popleft()

    def complete_derivative(self, derivative: Derivative, fault: str | None) -> None:
        """Hands over a derivative. `fault`: why it could not be computed, or None."""
        now = self._scheduler.clock()
        self._resume = now + (now - self._handed_out)
        derivative.fault = fault or ""
        self.trainer.complete(derivative)

    def fail(self, sequence: Sequence) -> None:
        """Ends the measurement of a sequence that cannot be computed."""
        self._block_manager.discard(sequence)
        self._end(sequence)
        if sequence.probe is not None:
            self._owner(sequence.probe).fail(sequence.probe)
        elif sequence.answer is not None:
            self.trainer.fail(sequence.answer)

    def _room(self, limit: int, share: int, owner: TextReading | Trainer) -> int:
        """How many more tokens of `owner` may be in flight, of at most `share`.

        A text that is longer than the limit takes nothing of the other one's share.
        """
        other = self.trainer if owner is self.text_reading else self.text_reading
        taken = other.num_tokens_in_flight
        free = limit - share if taken > limit else limit - taken
        return min(free, share) - owner.num_tokens_in_flight

    def _add(self, works: Iterable[TrainingWork]) -> None:
        now = self._scheduler.clock()
        for work in works:
            if isinstance(work, Derivative):
                self._derivatives.append(work)
                continue
            number = next(self._numbers)
            if isinstance(work, Answer):
                sequence = build_answer_sequence(work, now, number)
            else:
                sequence = build_probe_sequence(work, now if work.arrival is None else work.arrival, number)
            self._sequences.add(sequence)
            self._scheduler.add(sequence)

    def _owner(self, probe: Probe) -> TextReading | Trainer:
        return self.text_reading if self.text_reading.owns(probe) else self.trainer

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.finish(sequence)
        self._sequences.remove(sequence)

    def _fault(self, command: ReadTexts) -> str | None:
        """What is wrong with the command, or None."""
        tokens = itertools.chain(*command.prompts, *command.texts)
        parts = (command.texts, *command.prompts, *command.texts)
        if len(command.prompts) != len(command.texts) or not all(parts):
            return "there must be texts, as many prompts as texts, and none may be empty"
        if not all(0 <= token_id < self._vocab_size for token_id in tokens):
            return "a token id is not in the model's vocabulary"
        pairs = zip(command.prompts, command.texts, strict=True)
        if any(len(prompt) + len(text) > self._max_tokens for prompt, text in pairs):
            return f"a text and its prompt must have at most {self._max_tokens} tokens"
        return None
