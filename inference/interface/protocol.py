"""The messages between gateway and worker: typed, dumb, torch-free.

A worker is one process that serves one model. Gateway and worker each hold one end of a ZeroMQ
PAIR socket over a Unix socket; every message is one frame of MessagePack. The gateway sends
`Command`s, the worker sends `Report`s.
"""

from enum import StrEnum

import msgspec


class SamplingParams(msgspec.Struct, frozen=True):
    """How a token is chosen from a position's logits. The defaults change nothing."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    """Token id to a number added to its logit. <= -100 bans; >= 100 leaves only such tokens."""
    top_logprobs: int | None = None
    """None: no log probabilities; k: those of the sampled token and of the k most likely ones."""


class SteeringSpec(msgspec.Struct, frozen=True):
    """The concepts that a request's activations are steered by, and how strongly."""

    concepts: tuple[str, ...]
    """The digests of their examples, so that a name that comes to mean something else changes nothing."""
    strength: float


class GenerationRequest(msgspec.Struct, frozen=True, tag="submit"):
    """One request into the engine: `n` sequences that continue the same prompt."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    n: int = 1
    sampling: SamplingParams = SamplingParams()
    stop_token_ids: tuple[int, ...] = ()
    nice: bool = False
    steering: SteeringSpec | None = None


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Nobody waits any more for choice `index` of a request, or for any of them (None)."""

    request_id: str
    index: int | None = None


class TrainConcept(msgspec.Struct, frozen=True, tag="train"):
    """Make a concept's direction and measure it, as low-priority work; or find both in the cache.

    The texts are token ids, without what comes before them in a conversation.
    """

    concept: str
    """The digest of the examples, in hex."""
    prompt_token_ids: list[int]
    """Comes before each text: the chat template up to the assistant's words."""
    positive: list[list[int]]
    negative: list[list[int]]
    neutral: list[list[int]]
    """Texts that any steering should leave alone; the same for all concepts of a model."""
    background: bool = False
    """Work on it only while there is no request at all."""


class PrioritizeTraining(msgspec.Struct, frozen=True, tag="prioritize"):
    """Somebody waits for a concept now: from here on its training is not `background`."""

    concept: str


class ForgetConcept(msgspec.Struct, frozen=True, tag="forget"):
    """Drop a concept's direction, trained or in training. What is running keeps it."""

    concept: str


Command = GenerationRequest | Abort | TrainConcept | PrioritizeTraining | ForgetConcept


class FinishReason(StrEnum):
    STOP = "stop"
    """The token is one of the request's stop tokens; it is no content."""
    LENGTH = "length"
    """The token is the last that max_tokens allows."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position, by the model's own distribution there."""

    logprob: float
    """That of the sampled token."""
    top: list[tuple[int, float]]
    """(token id, log probability) of the most likely tokens, best first."""


class TokenEvent(msgspec.Struct, frozen=True, array_like=True):
    """One sampled token of one choice. The event with a finish_reason is the choice's last."""

    request_id: str
    index: int
    token_id: int
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None


class RefusalCode(StrEnum):
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    UNKNOWN_STEERING_CONCEPT = "UNKNOWN_STEERING_CONCEPT"
    QUEUE_FULL = "QUEUE_FULL"
    INTERNAL = "INTERNAL"


class SubmitResult(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a GenerationRequest: accepted, or refused for a reason."""

    request_id: str
    refusal: RefusalCode | None = None
    detail: str = ""
    """What was refused, such as the unknown concept's id."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An accepted request ends here, whole, because of a fault of the engine's."""

    request_id: str
    detail: str


class Effect(msgspec.Struct, frozen=True):
    """What a concept does at one strength."""

    strength: float
    shift: float
    """By how much the log odds of held-out positive over negative texts move, in nats per token."""
    perplexity_ratio: float
    """Perplexity of neutral texts over that without steering."""


class ConceptReport(msgspec.Struct, frozen=True):
    """How well a concept works on one model, measured on examples held out of its direction."""

    works: bool | None
    """None: too few examples to tell."""
    summary: str
    """The same in words."""
    warnings: list[str]
    num_examples: int
    num_held_out: int
    """Pairs that were measured, each with a direction made without it."""
    agreement: float | None
    """Mean cosine between the differences of two pairs, -1 to 1; None with a single pair."""
    effects: list[Effect]
    """By strength, from -1 to 1."""
    spearman: float | None
    """Rank correlation of strength and shift."""
    specificity: float | None
    """Shift from -1 to +1, relative to that of random directions of the same norm."""
    block: int
    """The decoder block whose output is steered, from 0."""
    dose: float
    """Norm of what strength 1 adds, relative to the mean norm of that block's output."""


class TrainingState(StrEnum):
    TRAINING = "training"
    """Its direction is being made."""
    MEASURING = "measuring"
    """It can be used; its report is being made."""
    READY = "ready"
    FAILED = "failed"


class TrainingUpdate(msgspec.Struct, frozen=True, array_like=True):
    """How far a TrainConcept has come. The one that is READY or FAILED is its last."""

    concept: str
    state: TrainingState
    progress: float = 0.0
    """0 to 1."""
    report: ConceptReport | None = None
    """With READY."""
    detail: str = ""
    """With FAILED: what is wrong with the examples, for whoever made them; empty: a fault of ours."""


class EngineStats(msgspec.Struct, frozen=True):
    """What an engine is at, and what it has done since it started."""

    running: int = 0
    """Sequences, as are those that wait."""
    waiting: int = 0
    blocks: int = 0
    """Of the KV cache."""
    blocks_in_use: int = 0
    preemptions: int = 0
    prefix_cache_queries: int = 0
    """Tokens of sequences that started, whose beginnings were looked for in the cache."""
    prefix_cache_hits: int = 0
    """Those of them that need not be computed."""


class StepReport(msgspec.Struct, frozen=True, tag="step"):
    """What one turn of the worker's loop brought, for all requests together, in this order."""

    submit_results: list[SubmitResult] = []
    events: list[TokenEvent] = []
    failures: list[Failure] = []
    training: list[TrainingUpdate] = []
    starts: dict[str, float] = {}
    """When a choice left the queue for the first time, by its request's id, in time.monotonic()."""
    stats: EngineStats | None = None
    """Now and then, if they have changed."""


class ModelInfo(msgspec.Struct, frozen=True):
    """What the gateway needs to know of the loaded model."""

    directory: str
    """Where tokenizer.json and the chat template lie."""
    context_length: int
    """Prompt and completion together, in tokens."""
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    """The model's own end-of-turn tokens."""
    weights_digest: str
    """Hex; changes when the weights do, and with nothing else."""
    dtype: str


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The model is loaded; the worker takes commands."""

    model: ModelInfo


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """The worker could not start and ends. `message` is one line for the operator."""

    message: str


Report = Started | StartFailed | StepReport


def encode(message: Command | Report) -> bytes:
    return msgspec.msgpack.encode(message)


_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def decode_command(frame: bytes) -> Command:
    """Raises msgspec.DecodeError on a frame that is no command."""
    return _command_decoder.decode(frame)


def decode_report(frame: bytes) -> Report:
    """Raises msgspec.DecodeError on a frame that is no report."""
    return _report_decoder.decode(frame)
