"""The file of an imported concept: safetensors with the values, and the concept's record as metadata.

One file holds both, so that a write that fails leaves neither.
"""

import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from app.concepts.vectors.safetensors_file import MAX_HEADER_BYTES, read_metadata, read_safetensors
from app.errors import InvalidRequest

SUFFIX = ".safetensors"
_FORMAT = "tiller-concept"
_VALUES = "values"


def encode(record: bytes, values: bytes, num_blocks: int) -> bytes:
    """`record`: JSON. `values`: see GivenVectors."""
    tensor = np.frombuffer(values, "<f4").reshape(num_blocks, -1)
    return save({_VALUES: tensor}, {"format": _FORMAT, "record": record.decode()})


def read_record(path: Path) -> str:
    """Reads the record only. Raises OSError, or ValueError if the file has none."""
    with path.open("rb") as file:
        length = int.from_bytes(start := file.read(8), "little")
        if length > min(MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size):
            raise ValueError("has no valid header")
        start += file.read(length)
    return record_of(start)


def record_of(content: bytes) -> str:
    """The record in a file's content. Its beginning is enough. Raises ValueError if there is none."""
    try:
        metadata = read_metadata(content)
    except InvalidRequest as error:
        raise ValueError(error.message) from None
    if metadata.get("format") != _FORMAT or "record" not in metadata:
        raise ValueError("is not the file of an imported concept")
    return metadata["record"]


def values_of(content: bytes) -> bytes:
    """The values in a file's content. Raises InvalidRequest."""
    _, tensors = read_safetensors(content)
    return next((bytes(tensor.data) for tensor in tensors if tensor.name == _VALUES), b"")
