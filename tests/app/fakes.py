"""An engine that plays a script, and its tiny model directory. Needs no worker and no torch."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from app.errors import ApiError, EngineUnavailable, ErrorCode
from app.telemetry.observation import WorkerState
from inference.interface.concepts import (
    AnswerEffect,
    ConceptReport,
    Effect,
    GivenVectors,
    ReadTexts,
    SampleAnswer,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.protocol import EngineStats, ModelInfo
from inference.interface.requests import FinishReason, GenerationRequest, TokenEvent, TokenLogprobs

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TURN = 2
CONTEXT_LENGTH = 256

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = [
    "Hello, world! The quick brown fox jumps over the lazy dog.",
    "hello there, how are you today?",
] * 4


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer with all 256 bytes and a few merges. Ids 0-2 are SPECIAL_TOKENS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def write_model_directory(directory: Path, chat_template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    """Writes tokenizer.json, tokenizer_config.json and (unless None) chat_template.jinja."""
    tokenizer = build_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if chat_template is not None:
        (directory / "chat_template.jinja").write_text(chat_template)
    return tokenizer


def model_info(directory: Path, vocab_size: int) -> ModelInfo:
    return ModelInfo(
        directory=str(directory),
        context_length=CONTEXT_LENGTH,
        vocab_size=vocab_size,
        end_token_ids={"config.json": (END_OF_TURN,)},
        weights_digest="5f" * 32,
        dtype="float32",
        num_layers=4,
        hidden_size=8,
    )


class Pause(Enum):
    """Steps of a script without events."""

    HANG = "hang"
    """The generation waits here until it is aborted."""


HANG = Pause.HANG

Step = list[TokenEvent] | Exception | Pause
"""One engine step: its events, or an exception to raise, or HANG."""

Script = Callable[[GenerationRequest], Iterable[Step]]


def reply(
    token_ids: Iterable[int],
    finish: FinishReason = FinishReason.STOP,
    logprobs: Callable[[int], TokenLogprobs] | None = None,
) -> Script:
    """A script: every choice generates these tokens, one per step.

    With STOP, an end-of-turn token follows. With LENGTH, the last token ends the choice. `logprobs` maps a
    token id to its log probabilities. Without it they are all -0.5, and `top` has the ids from 10 on. Only
    requests that ask for log probabilities get them.
    """
    generated = list(token_ids)
    if finish is FinishReason.STOP:
        generated.append(END_OF_TURN)

    def script(request: GenerationRequest) -> Iterable[Step]:
        for position, token_id in enumerate(generated):
            reason = finish if position == len(generated) - 1 else None
            token_logprobs = _logprobs(request, token_id, logprobs)
            yield [
                TokenEvent(
                    request.request_id,
                    index,
                    token_id,
                    reason,
                    token_logprobs,
                    readings_of(request, token_id, reason),
                )
                for index in range(request.n)
            ]

    return script


def readings_of(
    request: GenerationRequest, token_id: int, reason: FinishReason | None = None
) -> list[float] | None:
    """Readings that differ for each token and each concept. None, as in the worker, if the token has none."""
    if not request.readings or reason is FinishReason.STOP:
        return None
    return [token_id / 64 + position for position in range(len(request.readings))]


def _logprobs(
    request: GenerationRequest, token_id: int, given: Callable[[int], TokenLogprobs] | None
) -> TokenLogprobs | None:
    count = request.sampling.top_logprobs
    if count is None:
        return None
    if given is not None:
        return given(token_id)
    return TokenLogprobs(-0.5, [(10 + rank, -0.5 - rank) for rank in range(count)])


def _done() -> "asyncio.Future[None]":
    future = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


@dataclass
class FakeGeneration:
    """Plays one request's script. Stops when the whole request is aborted."""

    engine: "FakeEngine"
    request: GenerationRequest
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: set[int] = field(default_factory=set)
    holds_room: bool = True
    queue_seconds: float | None = 0.0

    @property
    def first_events(self) -> "asyncio.Future[None]":
        return self.engine.start or _done()

    @property
    def clipped(self) -> dict[str, float]:
        return self.engine.clipped

    async def __aiter__(self) -> AsyncIterator[list[TokenEvent]]:
        try:
            async for step in self._play():
                yield step
        finally:
            self.free_room()

    async def _play(self) -> AsyncIterator[list[TokenEvent]]:
        for step in self.engine.script(self.request):
            await asyncio.sleep(0)
            if step is HANG:
                await self.ended.wait()
            if self.ended.is_set():
                return
            if isinstance(step, Exception):
                raise step
            if isinstance(step, list):
                self.engine.steps_played += 1
                yield [event for event in step if event.index not in self.aborted]

    def abort(self, index: int | None = None) -> None:
        self.engine.aborts.append((self.request.request_id, index))
        self.aborted |= set(range(self.request.n)) if index is None else {index}
        if len(self.aborted) == self.request.n:
            self.ended.set()
            self.free_room()

    def free_room(self) -> None:
        self.engine.free_capacity += self.request.n if self.holds_room else 0
        self.holds_room = False


REPORT = ConceptReport(
    works=True,
    summary="Works: the held-out examples follow the strength.",
    warnings=["The pairs' differences agree little."],
    num_examples=2,
    num_distinct=2,
    num_groups=2,
    num_held_out=2,
    agreement=0.125,
    effects=[
        Effect(strength, strength / 2, shift_error=0.125, perplexity_ratio=1 + abs(strength) / 8)
        for strength in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ],
    spearman=1.0,
    specificity=4.0,
    specificity_error=0.5,
    answers=[
        AnswerEffect(strength, moved=abs(strength) / 2, repetition=0.0625, perplexity=8.0)
        for strength in (-1.0, 0.0, 1.0)
    ],
    samples=[SampleAnswer(strength, 1, [40, 41, 42]) for strength in (-1.0, 0.0, 1.0)],
    blocks=[16, 17],
    reading_block=16,
    dose=0.15,
    down_blocks=[16, 17],
    down_dose=0.1,
    max_strength=1.75,
    max_down_strength=1.25,
)

VECTORS = GivenVectors(
    blocks=(1, 2),
    values=struct.pack("<16f", *(0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0), *[-0.25] * 8),
    down_scale=0.5,
    max_strength=1.75,
    max_down_strength=1.25,
    reading_block=1,
    reading_range=(-2.0, 6.0),
)
"""Vectors for a model like that of `model_info`."""

TrainingStep = TrainingUpdate | Exception | Pause | asyncio.Event
"""An update, an exception to raise, an event to wait for, or HANG: waits until the concept is forgotten."""

TrainingScript = Callable[[TrainConcept], Iterable[TrainingStep]]


def train_well(command: TrainConcept) -> Iterable[TrainingStep]:
    yield TrainingUpdate(command.concept, TrainingState.TRAINING, 0.5)
    yield TrainingUpdate(command.concept, TrainingState.MEASURING, 0.8)
    yield TrainingUpdate(command.concept, TrainingState.READY, 1.0, REPORT)


def train_badly(command: TrainConcept) -> Iterable[TrainingStep]:
    yield TrainingUpdate(command.concept, TrainingState.TRAINING, 0.5)
    yield TrainingUpdate(command.concept, TrainingState.FAILED, detail="the examples differ in nothing")


def pausing(*steps: TrainingStep, state: TrainingState = TrainingState.TRAINING) -> TrainingScript:
    """A script that reports `state`, plays these steps, and then trains successfully."""

    def script(command: TrainConcept) -> Iterable[TrainingStep]:
        yield TrainingUpdate(command.concept, state, 0.5)
        yield from steps
        yield from train_well(command)

    return script


@dataclass(eq=False)
class FakeEngine:
    """Implements app.workers.engine.Engine.

    Tests set `script`, `training`, `refusal`, `clipped` and `available`, and read the rest.
    """

    model: ModelInfo
    script: Script = field(default_factory=lambda: reply([]))
    training: TrainingScript = train_well
    refusal: Exception | None = None
    """`submit` raises it: an app.errors.ApiError, like the real engine."""
    clipped: dict[str, float] = field(default_factory=dict)
    """The strengths that each request's generation reports as reduced, by digest."""
    capacity: int = 1280
    free_capacity: int = 1280
    stats: EngineStats = field(default_factory=EngineStats)
    start: "asyncio.Future[None] | None" = None
    """Submitted requests begin when it is done. None means that they begin at once."""
    available: bool = True
    restored: asyncio.Event | None = None
    """Set when a lost engine is available again. None means that it never is."""
    requests: list[GenerationRequest] = field(default_factory=list)
    aborts: list[tuple[str, int | None]] = field(default_factory=list)
    """Pairs of request id and choice, in order. None as the choice means all choices."""
    steps_played: int = 0
    trainings: list[TrainConcept] = field(default_factory=list)
    vectors: GivenVectors = VECTORS
    norms: list[float] = field(default_factory=lambda: [8.0, 16.0])
    """What `export` returns for each trained concept, together with REPORT."""
    trained: set[str] = field(default_factory=set)
    """By the concept's digest. Also those that were forgotten: several gateways share an engine."""
    question_refusal: Exception | None = None
    """`export` and `read` raise it."""
    exports: list[str] = field(default_factory=list)
    reads: list[ReadTexts] = field(default_factory=list)
    prioritized: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    in_training: dict[str, asyncio.Event] = field(default_factory=dict)
    """By the concept's digest. The event is set when the concept is forgotten."""

    @property
    def workers(self) -> list[WorkerState]:
        return [WorkerState(self.available, stats=self.stats)]

    async def wait_available(self) -> None:
        if self.restored is None:
            raise EngineUnavailable
        await self.restored.wait()

    async def submit(self, request: GenerationRequest) -> FakeGeneration:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.free_capacity -= request.n
        return FakeGeneration(self, request)

    async def train(self, command: TrainConcept) -> AsyncIterator[TrainingUpdate]:
        if not self.available:
            raise EngineUnavailable
        assert command.concept not in self.in_training, "it is in training already"
        self.trainings.append(command)
        forgotten = self.in_training[command.concept] = asyncio.Event()
        try:
            for step in self.training(command):
                await self._pause(step, forgotten)
                if forgotten.is_set():
                    yield TrainingUpdate(command.concept, TrainingState.FAILED, detail="forgotten")
                    return
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, TrainingUpdate):
                    if step.state is TrainingState.READY:
                        self.trained.add(command.concept)
                    yield step
        finally:
            if self.in_training.get(command.concept) is forgotten:
                del self.in_training[command.concept]

    async def _pause(self, step: TrainingStep, forgotten: asyncio.Event) -> None:
        awaited = [forgotten, step] if isinstance(step, asyncio.Event) else [forgotten]
        if step is not HANG and len(awaited) == 1:
            await asyncio.sleep(0)
            return
        tasks = [asyncio.create_task(event.wait()) for event in awaited]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def export(self, concept: str) -> VectorsResult:
        self.exports.append(concept)
        if self.question_refusal is not None:
            raise self.question_refusal
        if concept not in self.trained:
            raise ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, "no such steering concept")
        return VectorsResult("export", self.vectors, self.norms, REPORT)

    async def read(self, concept: str, prompts: list[list[int]], texts: list[list[int]]) -> list[list[float]]:
        """Each token's reading is its id, divided by 64."""
        self.reads.append(ReadTexts("read", concept, prompts, texts))
        if self.question_refusal is not None:
            raise self.question_refusal
        return [[token_id / 64 for token_id in text] for text in texts]

    def prioritize(self, concept: str) -> None:
        self.prioritized.append(concept)

    def forget(self, concept: str) -> None:
        self.forgotten.append(concept)
        if forgotten := self.in_training.pop(concept, None):
            forgotten.set()
