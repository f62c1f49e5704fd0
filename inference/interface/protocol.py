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


class SteeringScope(StrEnum):
    """Which positions of a sequence are steered. The first position never is."""

    ALL = "all"
    PROMPT = "prompt"
    """The positions of the prompt's tokens, and no others."""
    ANSWER = "answer"
    """The positions of the answer's tokens. The first of them is still predicted by the unsteered prompt."""


class SteeringMode(StrEnum):
    """What steering does to the output h of a decoder block, with the unit direction u of a concept."""

    ADD = "add"
    """Adds the strength times what strength 1 adds, along u."""
    ABLATE = "ablate"
    """Removes the component along u: h - strength * (u h) u. Strength 1 removes it completely."""
    CLAMP = "clamp"
    """Replaces the component along u by what `ADD` would add."""


class SteeringCondition(msgspec.Struct, frozen=True):
    """Steers the answer only if a concept's mean reading over the prompt is in a range, borders excluded."""

    concept: str
    """Digest of the concept."""
    above: float | None = None
    below: float | None = None


class SteeringSpec(msgspec.Struct, frozen=True):
    """The concepts that steer a request's activations, and how."""

    strengths: dict[str, float]
    """Digest of each concept's examples -> its strength, never 0.

    A digest, because new examples under an old name must not affect running requests.
    """
    scope: SteeringScope = SteeringScope.ALL
    mode: SteeringMode = SteeringMode.ADD
    condition: SteeringCondition | None = None
    """If it is set, only answers are steered, whatever the scope."""


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
    readings: tuple[str, ...] = ()
    """Digests of the concepts to read at each token of the answer."""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """End choice `index` of a request, or all its choices (None), or a ReadTexts. No result follows."""

    request_id: str
    index: int | None = None


class GivenVectors(msgspec.Struct, frozen=True):
    """Steering vectors that were made elsewhere, with their own scale."""

    blocks: tuple[int, ...]
    """Indices of the decoder blocks, ascending."""
    values: bytes
    """float32, little-endian, [len(blocks), hidden_size]: what strength 1 adds to each block's output."""
    down_scale: float = 1.0
    """Strength -1 subtracts `values` times this number."""
    max_strength: float = 2.0
    """The largest strength that is used."""
    max_down_strength: float = 2.0
    """The same for negative strengths, as a positive number."""
    reading_block: int | None = None
    """The decoder block whose output is read, one of `blocks`. None: the worker chooses."""
    reading_range: tuple[float, float] | None = None
    """Projections on the unit direction that read as 0 and 1. None: measured on neutral texts."""
    pairs_digest: str = ""
    """Not empty: the digest of the examples that the vectors were made from."""


class TrainConcept(msgspec.Struct, frozen=True, tag="train"):
    """Compute a concept's direction and measure it, at low priority, unless the cache has both.

    Each text is a list of token ids, without the prompt that precedes it.
    """

    concept: str
    """Digest of the examples or of the vectors, in hex."""
    prompt_token_ids: list[int]
    """The prompt that precedes each neutral text: the chat template up to the assistant's words."""
    pair_prompts: list[list[int]]
    """The prompt that precedes both texts of each pair. It ends like `prompt_token_ids`."""
    positive: list[list[int]]
    negative: list[list[int]]
    """The texts of the pairs. May be empty if `vectors` are given: then nothing is measured."""
    neutral: list[list[int]]
    """Unrelated texts, on which steering should have no effect. The same for all concepts of a model."""
    groups: list[int] = []
    """The number of each pair's group. Pairs that are almost alike are in one group, and count once as
    evidence. Empty: each pair is a group of its own."""
    num_duplicates: int = 0
    """How many exact duplicates of the pairs were left out."""
    questions: list[list[int]] = []
    """Neutral prompts for which training generates answers, to see the effect of steering."""
    stop_token_ids: tuple[int, ...] = ()
    """The tokens that end such an answer."""
    continuations: bytes = b""
    """A bit for each token of the vocabulary, lowest bit first: whether the token goes on with the word
    before it. Empty: each token is a word."""
    vectors: GivenVectors | None = None
    """Vectors that were made elsewhere. None: make the direction from the pairs."""
    background: bool = False
    """Train only while the engine has no requests."""


class PrioritizeTraining(msgspec.Struct, frozen=True, tag="prioritize"):
    """Treat a concept's training as not `background` from now on, because a caller waits for it."""

    concept: str


class ForgetConcept(msgspec.Struct, frozen=True, tag="forget"):
    """Drop a concept's direction, or stop its training. Running requests keep the direction."""

    concept: str


class ExportVectors(msgspec.Struct, frozen=True, tag="export"):
    """Send a trained concept's vectors. The answer is a VectorsResult with the same `request_id`."""

    request_id: str
    concept: str


class ReadTexts(msgspec.Struct, frozen=True, tag="read"):
    """Read how strongly a concept is present at each token of some texts, at low priority.

    The answer is a ReadingsResult with the same `request_id`. The worker reads all texts or none.
    """

    request_id: str
    concept: str
    prompts: list[list[int]]
    """What precedes each text. At least one token: the first position of a sequence is not read."""
    texts: list[list[int]]


Command = (
    GenerationRequest | Abort | TrainConcept | PrioritizeTraining | ForgetConcept | ExportVectors | ReadTexts
)


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
    readings: list[float] | None = None
    """How strongly each concept of the request's `readings` is present, from the activations at this token.

    0 and 1 are the means of the concept's negative and positive examples. Set if the request asks for
    readings and the token is part of the content.
    """


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
    clipped: dict[str, float] = {}
    """The strengths that were reduced to what the concept allows: digest -> strength that is used."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """All choices of an accepted request end here, because the engine failed to compute it."""

    request_id: str
    detail: str


class Effect(msgspec.Struct, frozen=True):
    """The effect of a concept at one strength, on held-out examples."""

    strength: float
    """From -1 to 1."""
    shift: float
    """Change of the log odds of held-out positive over negative texts, in nats per token."""
    shift_error: float | None
    """Standard error of `shift`. Unknown if it was measured on fewer than two groups of pairs."""
    perplexity_ratio: float
    """Perplexity of the neutral texts, divided by their perplexity without steering."""


class AnswerEffect(msgspec.Struct, frozen=True):
    """What generated answers to neutral questions look like at one strength."""

    strength: float
    """-1, 0 or 1."""
    moved: float
    """Share of the answers that moved towards the strength's sign by at least half of the distance between
    negative and positive examples, read without steering. 0 at strength 0."""
    repetition: float
    """Share of trigrams of words that repeat an earlier trigram of the same answer."""
    perplexity: float
    """Perplexity of the answers under the model without steering."""


class SampleAnswer(msgspec.Struct, frozen=True):
    """An answer that was generated in training."""

    strength: float
    question: int
    """Index of the question in TrainConcept.questions."""
    token_ids: list[int]


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
    num_distinct: int
    """Number of pairs without exact duplicates."""
    num_groups: int
    """Number of groups of pairs. Pairs that share a text or differ only in a slot are in one group."""
    num_held_out: int
    """Number of pairs that were measured, each with a direction computed without its group."""
    agreement: float | None
    """Mean cosine similarity between the differences of two pairs, -1 to 1. Unknown if there is one pair."""
    effects: list[Effect]
    """Ordered by strength, from -1 to 1. Empty if nothing was measured."""
    spearman: float | None
    """Rank correlation of strength and shift."""
    specificity: float | None
    """Shift from strength -1 to +1, divided by the shift that random directions of the same norm cause."""
    specificity_error: float | None
    """Standard error of `specificity`."""
    answers: list[AnswerEffect]
    """Ordered by strength: -1, 0, 1. Empty if no answers were generated."""
    samples: list[SampleAnswer]
    """Two answers for each strength, to the same two questions."""
    blocks: list[int]
    """Indices of the decoder blocks whose output is steered, from 0."""
    reading_block: int
    """Index of the decoder block whose output is read."""
    dose: float
    """What strength 1 adds, relative to the mean norm of a block's output. The largest of all blocks."""
    down_dose: float
    """The same for strength -1."""
    max_strength: float
    """The largest strength that is used. A larger one counts as this one."""
    max_down_strength: float
    """The same for negative strengths, as a positive number."""


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


class VectorsResult(msgspec.Struct, frozen=True):
    """A concept's vectors, or none if the worker does not know the concept."""

    request_id: str
    vectors: GivenVectors | None = None
    norms: list[float] = []
    """Mean norm of the output of each of the vectors' blocks."""
    report: ConceptReport | None = None


class ReadingsResult(msgspec.Struct, frozen=True):
    """How strongly a concept is present at each token of each text. None: the concept is not known."""

    request_id: str
    readings: list[list[float]] | None = None
    detail: str = ""
    """Why the texts cannot be read. Empty if the concept is not known."""
    failed: bool = False
    """The cause is an error in the worker."""


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
    vectors: list[VectorsResult] = []
    readings: list[ReadingsResult] = []
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
    num_layers: int = 0
    """Number of decoder blocks."""
    hidden_size: int = 0
    """Length of a decoder block's output vector."""
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
