"""The engine: runs all requests in one continuous batch. Operations: add, abort, step. Knows no sockets."""

import itertools
import random
from dataclasses import replace

import msgspec

from inference.compute.sampler import NOT_A_TOKEN
from inference.events import TokenEvents
from inference.interface.config import EngineConfig
from inference.interface.protocol import EngineStats, StepReport
from inference.interface.requests import (
    Failure,
    GenerationRequest,
    RefusalCode,
    SubmitResult,
    TokenEvent,
)
from inference.measuring import Measuring
from inference.runner.context import context_limit
from inference.runner.model_runner import ModelRunner, SampledToken, Step
from inference.runner.recovery import StepOutcome, StepRunner
from inference.runner.step_watch import StepWatch
from inference.scheduling.block_manager import BlockManager
from inference.scheduling.scheduler import Scheduler
from inference.scheduling.sequence import Sequence, Status, build_sequences
from inference.scheduling.steering import Reader
from inference.steering.direction_files import DirectionFiles
from inference.steering.steerer import RequestSteering, Steerer
from inference.steering.text_reading import TextReading
from inference.steering.trainer import Trainer


class Engine:
    def __init__(
        self, runner: ModelRunner, config: EngineConfig, directions: DirectionFiles | None = None
    ) -> None:
        """`directions`: the files of trained concepts. None: they are not stored."""
        self.runner = runner
        self.watch = StepWatch(config.max_step_seconds, computes_here=runner.model.device.type == "cpu")
        self._steps = StepRunner(runner, self.watch)
        self.steerer = Steerer()
        self.block_manager = BlockManager(runner.num_blocks, config.block_size)
        self.scheduler = Scheduler(
            self.block_manager,
            max_batch_tokens=config.max_batch_tokens,
            max_running=config.max_running,
            nice_ageing_seconds=config.nice_ageing_seconds,
        )
        self.context_length, self.context_limit = context_limit(runner.model, config, runner.num_blocks)
        """The limit for a sequence in tokens, and the setting that sets it ("": the model's own limit)."""
        self.trainer = Trainer(
            self.steerer,
            directions or DirectionFiles(None),
            vocab_size=runner.model.vocab_size,
            max_tokens=self.context_length,
            shape=(len(runner.model.layers), runner.model.hidden_size),
            blocks=config.steering_blocks,
            refines=config.refine_directions,
        )
        self._numbers = itertools.count()
        self.measuring = Measuring(
            self.trainer,
            TextReading(self.steerer),
            self.scheduler,
            self.block_manager,
            self._numbers,
            max_tokens=self.context_length,
            vocab_size=runner.model.vocab_size,
        )
        self._max_queued = config.max_queued
        self._seeds = random.Random(config.seed)  # noqa: S311 - sampling, not secrets
        self._sequences: dict[str, dict[int, Sequence]] = {}
        self._events = TokenEvents()
        self._ahead: Step | None = None
        """The next step, which the device already runs while the host works on the current one."""

    @property
    def is_idle(self) -> bool:
        """Whether there are no requests, no training and no reading."""
        return not self._sequences and self.measuring.is_idle

    @property
    def has_requests(self) -> bool:
        """Whether requests run or wait. Trainings and readings do not count."""
        return bool(self._sequences)

    def has_request(self, request_id: str) -> bool:
        """Whether a request with this id runs or waits."""
        return request_id in self._sequences

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=self.scheduler.num_waiting,
            blocks=self.block_manager.num_blocks,
            blocks_in_use=self.block_manager.num_blocks - self.block_manager.num_free_blocks,
            preemptions=self.scheduler.num_preemptions,
            prefix_cache_queries=self.block_manager.num_prefix_cache_queries,
            prefix_cache_hits=self.block_manager.num_prefix_cache_hits,
        )

    def add(self, request: GenerationRequest) -> SubmitResult:
        """Queues the request's n sequences, or refuses the request as a whole."""
        if refusal := self._refusal(request):
            return refusal
        steered = self._steer(request)
        arrival = self.scheduler.clock()
        sequences = build_sequences(
            request,
            arrival,
            self._numbers,
            self._seeds,
            steered.steering,
            steered.condition,
            lambda: self._readers(request),
        )
        self._sequences[request.request_id] = {sequence.index: sequence for sequence in sequences}
        for sequence in sequences:
            self.scheduler.add(sequence)
        return SubmitResult(request.request_id, clipped=steered.clipped)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends choice `index` of a request, or all choices (None), or a reading of texts.

        No events and no result follow. Does nothing for what has ended.
        """
        if request_id not in self._sequences:
            self.measuring.abort_reading(request_id)
        choices = self._sequences.get(request_id, {})
        for sequence in list(choices.values()):
            if index is None or sequence.index == index:
                self._finish(sequence)

    def step(self) -> StepReport:
        """Computes the next tokens of the most urgent sequences. Requests that cannot be computed fail.

        Raises BrokenEngineError or torch.AcceleratorError if the engine cannot compute anything any more.
        Raises RuntimeError if the scheduler exceeds the token budget.
        """
        self.measuring.queue_work(serving=bool(self._sequences))
        sequences, step = self._take_ahead() or self._launch()
        self._differentiate()
        report = StepReport()
        if sequences:
            self._ahead = self._launch_ahead(step) if step else None
            report = self._apply(sequences, self._steps.finish(sequences, step))
        return msgspec.structs.replace(
            report,
            training=self.trainer.take_updates(),
            vectors=self.trainer.take_exports(),
            directions=self.trainer.take_directions(),
            readings=self.measuring.text_reading.take_results(),
            starts=self.scheduler.take_starts(),
        )

    def close(self) -> None:
        """Ends the other processes that have parts of the model. The engine must not step any more."""
        self.runner.close()

    def check_integrity(self) -> None:
        """Raises RuntimeError if the bookkeeping of blocks is inconsistent."""
        self.block_manager.check_integrity(self.scheduler.sequences())

    def _refusal(self, request: GenerationRequest) -> SubmitResult | None:
        if fault := self._fault(request):
            return SubmitResult(request.request_id, RefusalCode.INTERNAL, fault)
        for concept in request.concepts:
            if not self.trainer.knows(concept):
                return SubmitResult(request.request_id, RefusalCode.UNKNOWN_STEERING_CONCEPT, concept)
        if len(request.prompt_token_ids) + request.max_tokens > self.context_length:
            return SubmitResult(request.request_id, RefusalCode.CONTEXT_LENGTH_EXCEEDED)
        if request.n > self._num_free_slots:
            return SubmitResult(request.request_id, RefusalCode.QUEUE_FULL)
        return None

    def _fault(self, request: GenerationRequest) -> str | None:
        """An error that the gateway should have refused, since it would fail every request in the batch."""
        ids = (*request.prompt_token_ids, *request.sampling.logit_bias)
        if request.request_id in self._sequences:
            return "request_id is already in use"
        if not request.prompt_token_ids or request.max_tokens < 1 or request.n < 1:
            return "prompt_token_ids must not be empty, and max_tokens and n must be at least 1"
        if min(ids) < 0 or max(ids) >= self.runner.model.vocab_size:
            return "a token id is not in the model's vocabulary"
        return None

    def _steer(self, request: GenerationRequest) -> RequestSteering:
        if request.steering is None:
            return RequestSteering(None, None, {})
        return self.steerer.steer(request.steering, len(request.prompt_token_ids))

    def _readers(self, request: GenerationRequest) -> tuple[Reader, ...]:
        first = len(request.prompt_token_ids)
        return tuple(self.steerer.reader(concept, first) for concept in request.readings)

    @property
    def _num_free_slots(self) -> int:
        """How many more sequences of requests can run or wait."""
        taken = sum(map(len, self._sequences.values()))
        return self.scheduler.max_running + self._max_queued - taken

    def _differentiate(self) -> None:
        """Computes a derivative for a training, if it is time for one."""
        derivative = self.measuring.next_derivative(serving=bool(self._sequences))
        if derivative is not None:
            fault = self._steps.differentiate(derivative)
            self.measuring.complete_derivative(derivative, fault)

    def _launch(self) -> tuple[list[Sequence], Step | None]:
        scheduled = self.scheduler.schedule()
        return scheduled, self._steps.launch(scheduled) if scheduled else None

    def _launch_ahead(self, step: Step) -> Step | None:
        """Launches the step after `step` before the host has read the tokens of `step`.

        Returns None if the next step may need other sequences, or needs these tokens on the host. Sequences
        that have already finished are computed and the result is discarded. Their blocks may be allocated
        again, because the device writes to them before it runs steps that are launched later.
        """
        if self.runner.can_be_followed(step) and self.scheduler.extend(step.sequences):
            return self._steps.launch_after(step)
        return None

    def _take_ahead(self) -> tuple[list[Sequence], Step] | None:
        """The step that was launched ahead, with the sequences that still run. None if there are none."""
        step, self._ahead = self._ahead, None
        if step is None:
            return None
        running = [sequence for sequence in step.sequences if sequence.status is Status.RUNNING]
        for sequence in running:
            sequence.num_scheduled_tokens = 1
        return (running, replace(step, sequences=running)) if running else None

    def _apply(self, scheduled: list[Sequence], outcome: StepOutcome) -> StepReport:
        """Appends the sampled tokens, registers full blocks, and ends sequences that finished or failed."""
        not_finite = {token.sequence for token in outcome.sampled if token.token_id == NOT_A_TOKEN}
        failed = set(outcome.failed)
        computed = [sequence for sequence in scheduled if sequence not in failed] if failed else scheduled
        for sequence in computed:
            before = sequence.num_computed_tokens
            sequence.num_computed_tokens += sequence.num_scheduled_tokens
            sequence.num_scheduled_tokens = 0
            _decide(sequence)
            if sequence not in not_finite:
                self.block_manager.register(sequence, before)
        for sequence in computed:
            if sequence.probe is not None and sequence.num_uncomputed_tokens == 0:
                self.measuring.complete(sequence)
        failures = self._fail(not_finite, "the model's output is not finite")
        failures += self._fail(failed, "the request cannot be computed")
        events = [
            event
            for token in outcome.sampled
            if token.sequence.status is not Status.FINISHED
            for event in self._take(token)
        ]
        return StepReport(events=events, failures=failures)

    def _fail(self, sequences: set[Sequence], detail: str) -> list[Failure]:
        """Ends the requests and trainings of these sequences, and removes their blocks' hashes."""
        failures = []
        for sequence in sequences:
            if not sequence.belongs_to_request:
                self.measuring.fail(sequence)
            elif sequence.status is not Status.FINISHED:
                for choice in self._sequences[sequence.request_id].values():
                    self.block_manager.discard(choice)
                self.abort(sequence.request_id)
                failures.append(Failure(sequence.request_id, detail))
        return failures

    def _take(self, token: SampledToken) -> list[TokenEvent]:
        """Adds a sampled token to its sequence. Returns the events to send."""
        if token.sequence.answer is not None:
            self.measuring.continue_answer(token.sequence, token.token_id)
            return []
        events, ended = self._events.add(token)
        if ended:
            self._finish(token.sequence)
        return events

    def _finish(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self._events.forget(sequence)
        choices = self._sequences[sequence.request_id]
        del choices[sequence.index]
        if not choices:
            del self._sequences[sequence.request_id]


def _decide(sequence: Sequence) -> None:
    """Decides the sequence's condition once its prompt is computed."""
    condition = sequence.condition
    if condition and condition.met is None and sequence.num_computed_tokens >= sequence.num_prompt_tokens:
        condition.decide()
