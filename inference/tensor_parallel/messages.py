"""What the leader of a group sends to its followers: typed data, one frame of MessagePack per message."""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.compute.host_batch import HostBatch, HostGroup
from inference.compute.transfer import Arrays
from inference.interface.config import EngineConfig
from inference.scheduling.steering import BlockVectors


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A numpy array."""

    dtype: Literal["int32", "int64", "float32"]
    shape: tuple[int, ...]
    values: bytes

    @classmethod
    def of(cls, array: NDArray[np.generic]) -> "Array":
        return cls(array.dtype.name, array.shape, array.tobytes())  # type: ignore[arg-type]

    def read(self) -> NDArray[np.generic]:
        """A copy that may be written to, because torch tensors share their memory with it."""
        return np.frombuffer(self.values, self.dtype).reshape(self.shape).copy()


class Start(msgspec.Struct, frozen=True, tag="start"):
    """The first message: what to load."""

    config: EngineConfig
    directory: str
    """The model's files."""
    number: int
    """Number of the follower, from 1."""


class BankRow(msgspec.Struct, frozen=True, array_like=True):
    """The new content of a row of the steering bank."""

    row: int
    blocks: tuple[int, ...]
    vectors: Array  # float32 [len(blocks), hidden_size]

    @classmethod
    def of(cls, row: int, vectors: BlockVectors) -> "BankRow":
        return cls(row, vectors.blocks, Array.of(vectors.vectors))

    def read(self) -> BlockVectors:
        return BlockVectors(self.blocks, self.vectors.read().astype(np.float32, copy=False))


class Forward(msgspec.Struct, frozen=True, tag="forward"):
    """One run of the model, with everything that has changed since the run before."""

    bank_rows: list[BankRow]
    table_changes: list[dict[str, Array]]
    """Changes of the block tables by batches that were built before this one, and did not run."""
    arrays: dict[str, Array]
    num_decodes: int
    table_rows: int
    table_width: int
    groups: list[tuple[int, int, Array, Array]]
    steering: dict[str, Array]
    """Empty: no token is steered."""
    steered_blocks: list[int]

    @property
    def batch(self) -> HostBatch:
        groups = tuple(
            HostGroup(first, end, _integers(slots), _integers(positions))
            for first, end, slots, positions in self.groups
        )
        arrays = read_arrays(self.arrays)
        return HostBatch(arrays, self.num_decodes, self.table_rows, self.table_width, groups)


Message = Start | Forward

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode_forward(
    host: HostBatch,
    steering: Arrays,
    steered_blocks: Iterable[int],
    bank_rows: list[BankRow],
    earlier: Iterable[HostBatch],
) -> bytes:
    """`earlier`: the batches that were built before this one, and did not run."""
    message = Forward(
        bank_rows,
        [_of_arrays(changes) for changes in (batch.table_changes for batch in earlier) if changes],
        _of_arrays(host.arrays),
        host.num_decodes,
        host.table_rows,
        host.table_width,
        [(g.first, g.end, Array.of(g.slots), Array.of(g.query_positions)) for g in host.groups],
        _of_arrays(steering),
        sorted(steered_blocks),
    )
    return msgspec.msgpack.encode(message)


def encode_start(message: Start) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(frame: bytes) -> Message:
    """Raises msgspec.DecodeError if the frame is not a message."""
    return _decoder.decode(frame)


def read_arrays(arrays: Mapping[str, Array]) -> dict[str, NDArray[np.generic]]:
    return {name: array.read() for name, array in arrays.items()}


def _of_arrays(arrays: Arrays) -> dict[str, Array]:
    return {name: Array.of(array) for name, array in arrays.items()}


def _integers(array: Array) -> NDArray[np.int64]:
    return array.read().astype(np.int64, copy=False)
