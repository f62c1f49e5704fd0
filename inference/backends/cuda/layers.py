"""A decoder layer's operations between its matrix products, as Triton kernels: fewer launches and reads."""

from typing import NamedTuple

import torch
import triton
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

from inference.backends.cuda.kernels import layers as kernels

_COLUMNS = 1024  # per program
_PAIRS = 1024  # of the numbers that `rotate_and_store` rotates, per program
_PAIRS_PER_WARP = 256  # 16 bytes of each half of a head per thread


class HeadNorms(NamedTuple):
    """The RMS norms of each head of queries and keys, as in Qwen3."""

    query_weight: torch.Tensor  # [size]
    key_weight: torch.Tensor  # [size]
    epsilon: float


def check(device: torch.device) -> None:
    """Tries one kernel. Raises what Triton raises if it cannot run, and ValueError if the result is wrong."""
    x = torch.arange(24, device=device, dtype=torch.float32).view(3, 8)
    if not torch.allclose(gate(x), F.silu(x[:, :4]) * x[:, 4:]):
        raise ValueError("a Triton kernel gives another result than torch")


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`x`: [..., size], contiguous. Returns the same shape."""
    out = torch.empty_like(x)
    _normalize(x, x, x, weight, out, epsilon, add=False)
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns x + residual and its RMS norm. `x` and `residual`: [..., size], contiguous."""
    total, out = torch.empty_like(x), torch.empty_like(x)
    _normalize(x, residual, total, weight, out, epsilon, add=True)
    return total, out


def _normalize(
    x: torch.Tensor,
    residual: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    epsilon: float,
    *,
    add: bool,
) -> None:
    size = x.shape[-1]
    kernels.normalize[(x.numel() // size,)](
        x, residual, total, weight, out, epsilon, ADD=add, SIZE=size, SIZE_2=triton.next_power_of_2(size)
    )


def rotate_and_store(
    qkv: torch.Tensor,  # [T, (heads + 2 * kv_heads) * size]
    cosines: torch.Tensor,  # [..., T, size]
    sines: torch.Tensor,
    keys: torch.Tensor,  # [slots, kv_heads, size]
    values: torch.Tensor,
    slots: torch.Tensor,  # [T]
    norms: HeadNorms | None = None,
) -> torch.Tensor:  # [T, heads, size]
    """Rotates queries and keys; stores keys and values in their slots. Returns the queries, a view of qkv.

    `norms` are applied before the rotation. `qkv`, `cosines` and `sines` are contiguous.
    """
    kv_heads, size = keys.shape[1:]
    rows = qkv.view(len(qkv), -1, size)
    count = rows.shape[1]  # heads + 2 * kv_heads
    half = triton.next_power_of_2(size // 2)
    piece = min(max(1, _PAIRS // half), triton.next_power_of_2(count))
    query_weight, key_weight, epsilon = norms or (qkv, qkv, 0.0)  # placeholders: unused without norms
    kernels.rotate_and_store[len(rows), triton.cdiv(count, piece)](
        rows,
        cosines,
        sines,
        keys,
        values,
        slots,
        query_weight,
        key_weight,
        epsilon,
        HEADS=count - 2 * kv_heads,
        KV_HEADS=kv_heads,
        SIZE=size,
        HALF_2=half,
        ROWS=piece,
        NORM=norms is not None,
        num_warps=max(1, min(4, piece * half // _PAIRS_PER_WARP)),
    )
    return rows[:, : count - 2 * kv_heads]


def gate(x: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half of `x` [T, 2 * size], contiguous. Returns [T, size]."""
    size = x.shape[-1] // 2
    out = x.new_empty(len(x), size)
    kernels.gate[len(x), triton.cdiv(size, _COLUMNS)](x, out, SIZE=size, COLUMNS=_COLUMNS)
    return out


def steer(hidden: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor) -> None:
    """hidden [T, size] += vectors[rows]. Tokens with row 0 stay bit for bit as they are."""
    size = hidden.shape[-1]
    kernels.steer[len(hidden), triton.cdiv(size, _COLUMNS)](
        hidden, vectors, rows, SIZE=size, COLUMNS=_COLUMNS
    )
