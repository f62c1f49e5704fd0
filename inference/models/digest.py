"""Identifies a model by its weights: a digest of their names, shapes and values."""

import hashlib
from collections.abc import Mapping

import torch

_PART = 2**22
"""Limit for the numbers that are copied at a time, unless a single row has more."""
_IN_FLOAT32 = {torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
"""Each of their numbers is a float32 number as well."""


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """A hex digest of the tensors' names, shapes and values.

    It is the same on every device, and for dtypes that hold the same numbers: a checkpoint in bfloat16 has
    the same digest when it is loaded in float32. A checkpoint in float32 usually has another digest when it
    is loaded in bfloat16, because that rounds its numbers. If several processes each have a part of a tensor,
    all must call this; each puts the whole tensor together, one after the other.
    """
    summary = hashlib.sha256()
    for name, part in sorted(weights.items()):
        tensor = _whole(part.detach())
        kind = "" if tensor.dtype in _IN_FLOAT32 else f" {tensor.dtype}"
        summary.update(f"{name} {list(tensor.shape)}{kind} {_checksum(tensor)};".encode())
    return summary.hexdigest()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _checksum(tensor: torch.Tensor) -> str:
    """Two exact integer sums over the bits of the numbers: one weighted by row, the other by column."""
    if tensor.numel() == 0:
        return "empty"
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    by_row, by_column = [], torch.zeros(rows.shape[1], dtype=torch.int64, device=tensor.device)
    step = max(1, _PART // rows.shape[1])
    for start in range(0, len(rows), step):
        bits = _bits(rows[start : start + step])
        by_row.append(bits.sum(1))
        by_column += bits.sum(0)
    return f"{_weighted(torch.cat(by_row))} {_weighted(by_column)}"


def _bits(part: torch.Tensor) -> torch.Tensor:
    """The bits of each number as int64: of float32 numbers if the dtype's numbers are such."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    numbers = part.float() if part.dtype in _IN_FLOAT32 else part
    return numbers.contiguous().view(integers[numbers.element_size()]).long()


def _weighted(sums: torch.Tensor) -> int:
    """A sum that changes when two different entries are swapped. Wraps around at 64 bits."""
    weights = torch.arange(1, sums.numel() + 1, device=sums.device)
    return int((sums * weights).sum())
