"""The tensors of a vector file, as float32 vectors. Knows no file format."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, shorten

Vector = npt.NDArray[np.float32]

_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,3})")
_LARGEST = 65504.0
"""The largest finite float16. No model has activations near it."""
ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number, for each type that can be read."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as it is in a file. `data` has exactly the bytes that type and shape need."""

    name: str
    dtype: str
    """A key of ITEM_SIZES, or the format's name of another type."""
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


def read_directions(tensors: Iterable[Tensor], hidden_size: int, num_layers: int) -> dict[int, Vector]:
    """The vector for each decoder block, from tensors called `direction.N`, in the order of the blocks.

    N is the index of the decoder block to whose output the vector belongs, from 0. llama.cpp, repeng and
    EasySteer all mean this by N. Raises InvalidRequest if a tensor does not fit the model.
    """
    found: dict[int, Vector] = {}
    for tensor in tensors:
        block = _block(tensor.name, num_layers)
        if block in found:
            raise InvalidRequest(f"the file has {tensor.name} twice")
        found[block] = _vector(tensor, hidden_size)
    if not found:
        raise InvalidRequest("the file has no tensors; it must have one called direction.N for each block")
    return dict(sorted(found.items()))


def _block(name: str, num_layers: int) -> int:
    match = _NAME.fullmatch(name)
    if match is None:
        rule = "must be called direction.N, where N is the index of a decoder block"
        raise InvalidRequest(f"the file's tensor {shorten(name)} {rule}")
    block = int(match[1])
    if block >= num_layers:
        raise InvalidRequest(
            f"{name} is beyond the model, whose decoder blocks are 0 to {num_layers - 1}; the file was "
            "made for another model"
        )
    return block


def _vector(tensor: Tensor, hidden_size: int) -> Vector:
    name = tensor.name
    numbers = read_numbers(tensor)
    if tensor.shape != (hidden_size,):
        rule = f"the model's hidden size is {hidden_size}; the file was made for another model"
        raise InvalidRequest(f"{name} has the shape {shorten(list(tensor.shape))}, but {rule}")
    return checked(name, numbers)


def checked(name: str, vector: Vector) -> Vector:
    """Returns the vector. Raises InvalidRequest if no activation can have such numbers."""
    if not np.isfinite(vector).all():
        raise InvalidRequest(f"{name} has numbers that are not finite")
    if np.abs(vector).max() > _LARGEST:
        raise InvalidRequest(f"{name} has numbers beyond {_LARGEST:g}")
    if norm(vector) == 0:
        raise InvalidRequest(f"{name} is zero")
    return vector


def read_numbers(tensor: Tensor) -> Vector:
    """All numbers of a tensor, in order. Raises InvalidRequest if it has another type."""
    if tensor.dtype not in ITEM_SIZES:
        rule = "the types F32, F16 and BF16 are supported, quantized ones are not"
        raise InvalidRequest(f"{tensor.name} has the type {tensor.dtype}; {rule}")
    if tensor.dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32)
    kind = "<f4" if tensor.dtype == "F32" else "<f2"
    return np.frombuffer(tensor.data, kind).astype(np.float32)


def norm(vector: Vector) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))
