"""The operations of linear layers with FP8 weights, as Triton kernels: one launch to round the input.

The product with scales per block is a kernel too, since `torch._scaled_mm` has it only on Hopper, only for
some numbers of tokens, and with a layout of the scales that depends on torch's version.
"""

import logging
from dataclasses import dataclass

import torch
import triton
from torch import nn

from inference.backends.comparison import are_close, random
from inference.backends.cuda.kernels import fp8 as kernels
from inference.interface.quantization import BLOCK
from inference.models.fp8.linear import Fp8Linear
from inference.models.fp8.operations import FP8, LEAST_SCALE, TORCH, Operations

_log = logging.getLogger(__name__)

_COLUMNS = 1024  # per program
_GROUPS = 8  # per program


@dataclass(frozen=True)
class Tile:
    """What one program of `multiply_blocks` computes, and how."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


_TILES = (Tile(16, 32, 4, 5), Tile(32, 64, 4, 4), Tile(64, 64, 4, 4), Tile(128, 128, 8, 3))
"""By number of tokens: the smallest that holds all of them, or the last one."""
_TRIAL_TOKENS = (3, *(tile.rows + 1 for tile in _TILES))


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.contiguous()
    rows, size = x.shape
    out, scales = torch.empty_like(x, dtype=FP8), x.new_empty(rows, 1, dtype=torch.float32)
    kernels.quantize_tokens[(rows,)](
        x,
        out,
        scales,
        LEAST_SCALE,
        size,
        SIZE_2=triton.next_power_of_2(size),
        num_warps=4 if size <= 4096 else 16,
    )
    return out, scales


def quantize_tensor(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x, dtype=FP8)
    kernels.quantize_tensor[(triton.cdiv(x.numel(), _COLUMNS),)](x, out, scale, x.numel(), COLUMNS=_COLUMNS)
    return out


def multiply_blocks(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    x, scales = x.contiguous(), scales.contiguous()
    (rows, inputs), outputs = x.shape, len(weight)
    blocks = triton.cdiv(inputs, BLOCK)
    numbers, x_scales = torch.empty_like(x, dtype=FP8), x.new_empty(blocks, rows, dtype=torch.float32)
    kernels.quantize_groups[rows, triton.cdiv(blocks, _GROUPS)](
        x, numbers, x_scales, LEAST_SCALE, rows, inputs, GROUPS=_GROUPS, num_warps=1
    )
    tile = next((tile for tile in _TILES if rows <= tile.rows), _TILES[-1])
    out = x.new_empty(rows, outputs)
    kernels.multiply_blocks[triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.columns)](
        numbers,
        x_scales,
        weight,
        scales,
        out,
        rows,
        inputs,
        outputs,
        WHOLE=inputs % BLOCK == 0,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


TRITON = Operations(quantize_tokens, quantize_tensor, multiply_blocks)


@torch.inference_mode()
def accelerate(model: nn.Module) -> None:
    """Makes the layers with FP8 weights compute with the kernels, if those give the same results here."""
    results: dict[object, bool] = {}
    for layer in model.modules():
        if isinstance(layer, Fp8Linear):
            kind = (layer.in_features, layer.out_features, layer.scheme)
            if kind not in results:
                results[kind] = _try(layer, next(model.parameters()).dtype)
            layer.operations = TRITON if results[kind] else TORCH


def _try(layer: Fp8Linear, dtype: torch.dtype) -> bool:
    """Whether the layer computes the same with the kernels, for each of their variants."""
    reason = "they give another result than torch"
    try:
        for count in _TRIAL_TOKENS:
            x = random(count, layer.in_features).to(layer.weight.device, dtype)
            results = []
            for layer.operations in (TORCH, TRITON):
                results.append(layer(x))
            if not are_close(*results):
                break
        else:
            return True
    except Exception as error:  # Triton may not support the device
        reason = " ".join(str(error).split())[:500]
    _log.warning("%s: slower, without Triton kernels for FP8: %s", layer, reason)
    return False
