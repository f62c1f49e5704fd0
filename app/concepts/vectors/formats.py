"""Recognizes the format of a vector file by its content, and reads it."""

import json
from contextlib import suppress
from dataclasses import dataclass

from app.concepts.vectors.gguf_file import MAGIC, read_gguf
from app.concepts.vectors.safetensors_file import is_safetensors, read_safetensors
from app.concepts.vectors.tensors import Tensor
from app.errors import InvalidRequest, shorten

_ARCHITECTURE = "controlvector"
_EASYSTEER = "controlvector.easysteer"

_CONVERT = 'convert it first, as the section "Vectors in and out" of docs/steering.md shows'
_ACCEPTED = "the body must be a safetensors file or a GGUF control vector"


@dataclass(frozen=True)
class VectorFile:
    """The content of a file."""

    metadata: dict[str, str]
    tensors: list[Tensor]


def read_vector_file(data: bytes) -> VectorFile:
    """Reads a safetensors file, or a GGUF control vector. Raises InvalidRequest."""
    if data.startswith(MAGIC):
        metadata, tensors = read_gguf(data)
        _check_control_vector(metadata)
        return VectorFile({}, tensors)
    if is_safetensors(data):
        return VectorFile(*read_safetensors(data))
    raise InvalidRequest(_fault(data))


def _check_control_vector(metadata: dict[str, str]) -> None:
    architecture = metadata.get("general.architecture")
    if architecture != _ARCHITECTURE:
        rule = f"general.architecture must be {_ARCHITECTURE!r}, got {shorten(architecture)}"
        raise InvalidRequest(f"the GGUF file is no control vector: {rule}")
    component = None
    with suppress(ValueError, RecursionError, AttributeError):
        component = json.loads(metadata.get(_EASYSTEER, "{}")).get("component")
    if component not in (None, "hidden_states"):
        rule = f"EasySteer made it for {shorten(component)}, and only hidden_states can be steered"
        raise InvalidRequest(f"the GGUF file cannot be used: {rule}")


def _fault(data: bytes) -> str:
    if not data:
        return f"{_ACCEPTED}, and it is empty"
    if data.startswith(b"PK\x03\x04"):
        return f"the file is a zip archive, as torch.save and numpy.savez write them; {_CONVERT}"
    if data[0] == 0x80 and data[1:2] <= b"\x05":
        return f"the file is a pickle (.pt, .pth, .bin, .pkl), which can run code when it is read; {_CONVERT}"
    if data.startswith(b"\x93NUMPY"):
        return f"the file is a NumPy array; {_CONVERT}"
    return f"{_ACCEPTED}, and it is neither"
