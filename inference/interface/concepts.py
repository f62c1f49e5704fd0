"""The messages about steering concepts: training, vectors, readings. Typed data without logic."""

from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

Sample = TypeVar("Sample")
"""A sample answer in a report."""


class GivenVectors(msgspec.Struct, frozen=True):
    """Steering vectors that were made elsewhere, with their own scale."""

    blocks: tuple[int, ...]
    """Indices of the decoder blocks, ascending."""
    values: bytes
    """float32, little-endian, [len(blocks), hidden_size]: what strength 1 adds to each block's output, or
    would add if positive strengths steered the block. Unit vectors if there are `lengths`."""
    down_scale: float = 1.0
    """Strength -1 subtracts this times what strength 1 adds, at the blocks that negative strengths steer."""
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
    up_blocks: tuple[int, ...] | None = None
    """Those of `blocks` that positive strengths steer. None: all."""
    down_blocks: tuple[int, ...] | None = None
    """The same for negative strengths."""
    lengths: tuple[float, ...] | None = None
    """Per block: what to multiply its unit vector with, so that a direction leaves the process and comes back
    bit for bit. None: the values have their own lengths."""


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


class SendDirection(msgspec.Struct, frozen=True, tag="send"):
    """Send a trained concept's direction, for another worker with the same model.

    The answer is a DirectionResult with the same `request_id`.
    """

    request_id: str
    concept: str


class TakeDirection(msgspec.Struct, frozen=True, tag="take"):
    """Use a direction that another worker with the same model has sent, unless the concept is known."""

    concept: str
    content: bytes
    calibration: bytes


class ReadTexts(msgspec.Struct, frozen=True, tag="read"):
    """Read how strongly a concept is present at each token of some texts, at low priority.

    The answer is a ReadingsResult with the same `request_id`. The worker reads all texts or none.
    """

    request_id: str
    concept: str
    prompts: list[list[int]]
    """What precedes each text. At least one token: the first position of a sequence is not read."""
    texts: list[list[int]]


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


class BaseReport(msgspec.Struct, Generic[Sample], frozen=True, kw_only=True):
    """What training found out. The worker's report has token ids as samples, the API's report has texts.

    The API's documentation shows the texts below the fields. They say null, which is None here.
    """

    works: bool | None
    """Whether the concept has the effect that its examples show. null: there are too few examples to tell, or
    nothing was measured."""
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
    """Mean cosine similarity between the differences of two pairs, -1 to 1. null: there is only one pair."""
    effects: list[Effect]
    """The effect on held-out pairs, ordered by strength, from -1 to 1. Empty if it was not measured."""
    spearman: float | None
    """Rank correlation of strength and shift."""
    specificity: float | None
    """Shift from strength -1 to 1, divided by the shift that random directions of the same norm cause."""
    specificity_error: float | None
    """Standard error of `specificity`."""
    answers: list[AnswerEffect]
    """What generated answers look like at the strengths -1, 0 and 1. Empty if none were generated."""
    samples: list[Sample]
    """Some of these answers: the same questions at each strength."""
    blocks: list[int]
    """Indices of the decoder blocks whose output positive strengths steer, from 0."""
    down_blocks: list[int]
    """The same for negative strengths."""
    reading_block: int
    """Index of the decoder block whose output is read."""
    dose: float
    """Norm of what strength 1 adds to a block's output, divided by that output's mean norm. With several
    blocks, the largest of these numbers."""
    down_dose: float
    """The same for strength -1."""
    max_strength: float
    """The largest strength that is used. A larger one counts as this one."""
    max_down_strength: float
    """The same for negative strengths, as a positive number."""


class ConceptReport(BaseReport[SampleAnswer], frozen=True, kw_only=True):
    """How well a concept works on one model, measured on held-out contrastive pairs."""


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


class DirectionResult(msgspec.Struct, frozen=True):
    """A concept's direction as a file, and the model's calibration."""

    request_id: str
    content: bytes | None = None
    """None: the worker does not know the concept."""
    calibration: bytes = b""


class ReadingsResult(msgspec.Struct, frozen=True):
    """How strongly a concept is present at each token of each text. None: the concept is not known."""

    request_id: str
    readings: list[list[float]] | None = None
    detail: str = ""
    """Why the texts cannot be read. Empty if the concept is not known."""
    failed: bool = False
    """The cause is an error in the worker."""
