"""The messages between gateway and worker: typed data without logic. Imports no torch.

A worker is one process that serves one model. Gateway and worker each hold one end of a ZeroMQ
PAIR socket over a Unix socket; every message is one frame of MessagePack. The gateway sends
`Command`s, the worker sends `Report`s. The messages about steering concepts are in concepts.py, those about
requests in requests.py.
"""

import msgspec

from inference.interface.concepts import (
    ExportVectors,
    ForgetConcept,
    PrioritizeTraining,
    ReadingsResult,
    ReadTexts,
    TrainConcept,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.requests import Abort, Failure, GenerationRequest, SubmitResult, TokenEvent

Command = (
    GenerationRequest | Abort | TrainConcept | PrioritizeTraining | ForgetConcept | ExportVectors | ReadTexts
)


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
    """Request id -> seconds in the queue, once one of its choices has left the queue for the first time."""
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
    quantization: str = "none"
    """How the weights are rounded while the model computes: EngineConfig.quantization."""
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
