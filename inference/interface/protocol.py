"""The messages between gateway and worker: typed data without logic. Imports no torch.

A worker is one process that serves one model. Gateway and worker each hold one end of a ZeroMQ
PAIR socket over a Unix socket; every message is one frame of MessagePack. The gateway sends
`Command`s, the worker sends `Report`s.
"""

from enum import StrEnum

import msgspec


class SamplingParams(msgspec.Struct, frozen=True):
    """How a token is sampled from the logits. The defaults sample from the model's own distribution."""

    temperature: float = 1.0
    """Divides the logits. 0: greedy, the most likely token is taken."""
    top_p: float = 1.0
    top_k: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    """Maps a token id to a number that is added to its logit.

    A bias <= -100 bans the token. If any bias is >= 100, only tokens with such a bias can be sampled.
    """
    top_logprobs: int | None = None
    """k: report log probabilities of the sampled token and of the k most likely tokens. None: report none."""


class SteeringSpec(msgspec.Struct, frozen=True):
    """The concepts that steer a request's activations, and the strength."""

    concepts: tuple[str, ...]
    """Digests of the concepts' examples. New examples under an old name do not affect running requests."""
    strength: float


class GenerationRequest(msgspec.Struct, frozen=True, tag="submit"):
    """One request to the engine: generate `n` choices for the same prompt."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    n: int = 1
    sampling: SamplingParams = SamplingParams()
    stop_token_ids: tuple[int, ...] = ()
    nice: bool = False
    steering: SteeringSpec | None = None


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End choice `index` of a request, or all its choices (None)."""

    request_id: str
    index: int | None = None


class TrainConcept(msgspec.Struct, frozen=True, tag="train"):
    """Compute a concept's direction and measure it, at low priority, unless the cache has both.

    Each text is a list of token ids, without the prompt that precedes it.
    """

    concept: str
    """Digest of the examples, in hex."""
    prompt_token_ids: list[int]
    """The prompt that precedes each text: the chat template up to the assistant's words."""
    positive: list[list[int]]
    negative: list[list[int]]
    neutral: list[list[int]]
    """Unrelated texts, on which steering should have no effect. The same for all concepts of a model."""
    background: bool = False
    """Train only while the engine has no requests."""


class PrioritizeTraining(msgspec.Struct, frozen=True, tag="prioritize"):
    """Treat a concept's training as not `background` from now on, because a caller waits for it."""

    concept: str


class ForgetConcept(msgspec.Struct, frozen=True, tag="forget"):
    """Drop a concept's direction, or stop its training. Running requests keep the direction."""

    concept: str


Command = GenerationRequest | Abort | TrainConcept | PrioritizeTraining | ForgetConcept


class FinishReason(StrEnum):
    STOP = "stop"
    """The token is one of the request's stop tokens. It is not part of the content."""
    LENGTH = "length"
    """The token is the last one that max_tokens allows."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position, from the logits before SamplingParams are applied."""

    logprob: float
    """Log probability of the sampled token."""
    top: list[tuple[int, float]]
    """(token id, log probability) of the most likely tokens, most likely first."""


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
    """The answer to a GenerationRequest: accepted (`refusal` is None) or refused."""

    request_id: str
    refusal: RefusalCode | None = None
    detail: str = ""
    """What the refusal is about, such as the unknown concept's digest."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """All choices of an accepted request end here, because the engine failed to compute it."""

    request_id: str
    detail: str


class Effect(msgspec.Struct, frozen=True):
    """The effect of a concept at one strength."""

    strength: float
    """From -1 to 1."""
    shift: float
    """Change of the log odds of held-out positive over negative texts, in nats per token."""
    perplexity_ratio: float
    """Perplexity of the neutral texts, divided by their perplexity without steering."""


class ConceptReport(msgspec.Struct, frozen=True):
    """How well a concept works on one model, measured on held-out contrastive pairs."""

    works: bool | None
    """Whether the concept has the effect that its examples show. Unknown if there are too few examples."""
    summary: str
    """The verdict in words."""
    warnings: list[str]
    """Problems of the examples and of the effect, in words."""
    num_examples: int
    """Number of all pairs."""
    num_held_out: int
    """Number of pairs that were measured, each with a direction computed without it."""
    agreement: float | None
    """Mean cosine similarity between the differences of two pairs, -1 to 1. Unknown if there is one pair."""
    effects: list[Effect]
    """Ordered by strength, from -1 to 1."""
    spearman: float | None
    """Rank correlation of strength and shift."""
    specificity: float | None
    """Shift from strength -1 to +1, divided by the shift that random directions of the same norm cause."""
    block: int
    """Index of the decoder block whose output is steered, from 0."""
    dose: float
    """Norm of the steering vector at strength 1, divided by the mean norm of that decoder block's output."""


class TrainingState(StrEnum):
    TRAINING = "training"
    """The worker computes the direction."""
    MEASURING = "measuring"
    """Requests can use the direction. The worker measures it for the report."""
    READY = "ready"
    FAILED = "failed"


class TrainingUpdate(msgspec.Struct, frozen=True, array_like=True):
    """The progress of a TrainConcept. The update that is READY or FAILED is the last one."""

    concept: str
    state: TrainingState
    progress: float = 0.0
    """0 to 1."""
    report: ConceptReport | None = None
    """Set if READY."""
    detail: str = ""
    """If FAILED: what is wrong with the examples. Empty if the cause is an error in the worker."""


class EngineStats(msgspec.Struct, frozen=True):
    """The current load of an engine, and its counters since it started."""

    running: int = 0
    """Running sequences."""
    waiting: int = 0
    """Waiting sequences."""
    blocks: int = 0
    """Blocks of the KV cache."""
    blocks_in_use: int = 0
    preemptions: int = 0
    prefix_cache_queries: int = 0
    """Tokens of started sequences, for which the prefix cache was searched."""
    prefix_cache_hits: int = 0
    """The part of these tokens that was found in the prefix cache and is not computed again."""


class StepReport(msgspec.Struct, frozen=True, tag="step"):
    """The results of one turn of the worker's loop, for all requests together.

    A request's submit result comes before its start, its start before its events, and these before a failure.
    """

    submit_results: list[SubmitResult] = []
    events: list[TokenEvent] = []
    failures: list[Failure] = []
    training: list[TrainingUpdate] = []
    starts: dict[str, float] = {}
    """Request id -> when one of its choices left the queue for the first time, by time.monotonic()."""
    stats: EngineStats | None = None
    """Sent at intervals, if they have changed."""


class ModelInfo(msgspec.Struct, frozen=True):
    """The facts about the loaded model that the gateway needs."""

    directory: str
    """Directory of tokenizer.json and the chat template."""
    context_length: int
    """Limit for prompt + completion, in tokens."""
    vocab_size: int
    end_token_ids: dict[str, tuple[int, ...]]
    """The tokens that end an answer. Maps each configuration file that names some to their ids."""
    weights_digest: str
    """Digest of the weights, in hex. It depends on nothing else."""
    dtype: str
    context_limit: str = ""
    """The setting that limits context_length, such as `engine.kv_cache_gib`. "": the model itself."""


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The model is loaded, and the worker accepts commands."""

    model: ModelInfo


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """The worker could not start, and exits. `message` is one line for the operator."""

    message: str


Report = Started | StartFailed | StepReport


def encode(message: Command | Report) -> bytes:
    return msgspec.msgpack.encode(message)


_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def decode_command(frame: bytes) -> Command:
    """Raises msgspec.DecodeError if the frame is not a command."""
    return _command_decoder.decode(frame)


def decode_report(frame: bytes) -> Report:
    """Raises msgspec.DecodeError if the frame is not a report."""
    return _report_decoder.decode(frame)
