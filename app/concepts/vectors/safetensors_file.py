"""Reads a safetensors file from memory. https://huggingface.co/docs/safetensors, "Format"."""

import json
from typing import Any

from safetensors import SafetensorError, deserialize

from app.concepts.vectors.tensors import Tensor
from app.errors import InvalidRequest, clip, shorten

MAX_HEADER_BYTES = 4 * 2**20
"""Much more than the header of a vector file needs, even with examples in it."""
_MAX_TENSORS = 1024
_IMPLAUSIBLE = 2**32
"""Files of other formats begin with bytes that would be a longer header than this."""


def is_safetensors(data: bytes) -> bool:
    """Whether a file begins like safetensors: the length of a header, and then a JSON object."""
    return _header_length(data) < _IMPLAUSIBLE and data[8:9] == b"{"


def read_safetensors(data: bytes) -> tuple[dict[str, str], list[Tensor]]:
    """The file's metadata and tensors. Raises InvalidRequest."""
    header = _read_header(data)
    metadata = _check_metadata(header.pop("__metadata__", {}))
    if len(header) > _MAX_TENSORS:
        raise _invalid(f"it has {len(header)} tensors")
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise _invalid(clip(str(error), 200)) from None
    return metadata, [
        Tensor(name, tensor["dtype"], tuple(tensor["shape"]), tensor["data"]) for name, tensor in found
    ]


def read_metadata(start: bytes) -> dict[str, str]:
    """The metadata of a file, from its first 8 + header length bytes. Raises InvalidRequest."""
    return _check_metadata(_read_header(start).get("__metadata__", {}))


def _check_metadata(metadata: object) -> dict[str, str]:
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise _invalid("its metadata must map strings to strings")
    return metadata


def _header_length(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _read_header(data: bytes) -> dict[str, Any]:
    length = _header_length(data)
    if length > MAX_HEADER_BYTES:
        raise _invalid(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _DuplicateError) else "its header is not valid JSON"
        raise _invalid(reason) from None
    if not isinstance(header, dict):
        raise _invalid("its header is not a JSON object")
    return header


class _DuplicateError(ValueError):
    pass


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object. Of a repeated key, different readers take different values."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateError(f"its header has {shorten(name)} twice")
        found[name] = value
    return found


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the safetensors file cannot be used: {reason}")
