"""The messages between gateway and worker: typed data without logic. Imports no torch.

A worker is one process that serves one model. Every message is one frame of MessagePack. The gateway sends
`Command`s, the worker sends `Report`s. The messages about steering concepts are in concepts.py, those about
requests in requests.py.

A worker that a gateway has started holds one end of a ZeroMQ PAIR socket over a Unix socket, and that gateway
the other one. A worker that was started on its own has a ROUTER socket, to which any number of gateways
connect, each with a DEALER socket. Such a gateway says Hello first, and then Ping every PING_SECONDS. No
message has a time or a path, because the two may be on different hosts.
"""

import msgspec

from inference.interface.concepts import (
    DirectionResult,
    ExportVectors,
    ForgetConcept,
    PrioritizeTraining,
    ReadingsResult,
    ReadTexts,
    SendDirection,
    TakeDirection,
    TrainConcept,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.requests import Abort, Failure, GenerationRequest, SubmitResult, TokenEvent

Command = (
    GenerationRequest
    | Abort
    | TrainConcept
    | PrioritizeTraining
    | ForgetConcept
    | ExportVectors
    | SendDirection
    | TakeDirection
    | ReadTexts
)
"""What a gateway asks of the engine."""


PING_SECONDS = 1.0
SILENT_SECONDS = 10.0
"""A worker ends the requests of a gateway from which it has heard nothing for this long."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message of a gateway. The answer is Started, or StartFailed if the worker refuses it."""

    version: str
    """Tiller's version. Only a gateway and a worker of the same version work together."""
    model: str
    """The name of the model that the gateway wants."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """The gateway is there."""


class FetchFile(msgspec.Struct, frozen=True, tag="fetch"):
    """Send one of the files in Started. The answer is FileContent."""

    sha256: str
    """In hex."""


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
    directions: list[DirectionResult] = []
    readings: list[ReadingsResult] = []
    starts: dict[str, float] = {}
    """Request id -> seconds in the queue, once one of its choices has left the queue for the first time."""
    stats: EngineStats | None = None
    """Sent at intervals, if they have changed."""


class ModelInfo(msgspec.Struct, frozen=True):
    """The facts about the loaded model that the gateway needs."""

    directory: str
    """Directory of tokenizer.json and the chat template. Empty if the gateway fetches them: Started.files."""
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
    capacity: int = 0
    """How many choices may run or wait. 0: as the gateway has configured it."""
    files: dict[str, str] = {}
    """Name -> SHA-256 in hex, of the model's files that a gateway on another host needs: tokenizer and chat
    template. Empty if the gateway can read `model.directory`."""


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """The worker could not start, and exits. Or it refuses this gateway, which says Hello again later."""

    message: str
    """One line for the operator."""


class FileContent(msgspec.Struct, frozen=True, tag="file"):
    """A file that the gateway has asked for."""

    sha256: str
    content: bytes


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """The worker goes on with its requests, takes no new ones, and exits soon."""


Report = Started | StartFailed | StepReport | FileContent | Leaving


def encode(message: Command | Hello | Ping | FetchFile | Report) -> bytes:
    return msgspec.msgpack.encode(message)


_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_message_decoder: msgspec.msgpack.Decoder[Command | Hello | Ping | FetchFile] = msgspec.msgpack.Decoder(
    Command | Hello | Ping | FetchFile
)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def decode_command(frame: bytes) -> Command:
    """Raises msgspec.DecodeError if the frame is not a command."""
    return _command_decoder.decode(frame)


def decode_message(frame: bytes) -> Command | Hello | Ping | FetchFile:
    """Like `decode_command`, for a worker that was started on its own."""
    return _message_decoder.decode(frame)


def decode_report(frame: bytes) -> Report:
    """Raises msgspec.DecodeError if the frame is not a report."""
    return _report_decoder.decode(frame)
