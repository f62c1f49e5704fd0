"""Adds metadata to a vector file."""

import numpy as np
from safetensors.numpy import save

from app.concepts.vectors.formats import read_vector_file
from app.concepts.vectors.tensors import read_numbers


def add_metadata(data: bytes, **metadata: str) -> bytes:
    """A safetensors file with the same vectors as a vector file of any format. Raises InvalidRequest."""
    file = read_vector_file(data)
    tensors = {tensor.name: np.reshape(read_numbers(tensor), tensor.shape) for tensor in file.tensors}
    return save(tensors, file.metadata | metadata)
