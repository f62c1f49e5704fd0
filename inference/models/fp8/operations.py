"""The operations of linear layers with FP8 weights, as torch operations.

A back end may have faster ones. FP8 is e4m3: 448 is its largest number, and there are no infinities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

from inference.interface.quantization import BLOCK

FP8 = torch.float8_e4m3fn
HIGHEST = 448.0
LEAST_SCALE = 1e-12
"""For inputs that are all zero, so that nothing is divided by zero."""


@dataclass(frozen=True)
class Operations:
    """What a layer computes besides `torch._scaled_mm`."""

    quantize_tokens: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """[T, size] -> FP8 numbers [T, size] and a float32 scale per token [T, 1]."""
    quantize_tensor: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """[T, size] and a float32 scale [] -> FP8 numbers [T, size]."""
    multiply_blocks: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """x [T, in], an FP8 weight [out, in] with one scale per block of 128 x 128 -> x @ weight.T [T, out].

    Quantizes x, with one scale for each 128 numbers of a token."""


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scale = largest absolute number / 448, as compressed-tensors defines it (`calculate_qparams`).

    On CUDA, torch divides by a number by multiplying with its inverse. This is the same on every device.
    """
    scales = (x.abs().amax(-1, keepdim=True).float() * (1 / HIGHEST)).clamp_min(LEAST_SCALE)
    return quantize_tensor(x, scales), scales


def quantize_tensor(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rounds x / scale to the nearest FP8 number. Larger numbers than 448 become 448."""
    return (x.float() / scale).clamp(-HIGHEST, HIGHEST).to(FP8)


def multiply_blocks(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Slow: computes in float32, with a copy of the weight. `scales`: [ceil(out / 128), ceil(in / 128)]."""
    size = x.shape[-1]
    groups = F.pad(x, (0, -size % BLOCK)).view(-1, BLOCK)
    numbers, group_scales = quantize_tokens(groups)
    rounded = (numbers.float() * group_scales).view(len(x), -1)[:, :size]
    return (rounded @ dequantize_blocks(weight, scales).T).to(x.dtype)


def dequantize_blocks(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 weight [out, in]."""
    rows, columns = weight.shape
    spread = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return weight.float() * spread


TORCH = Operations(quantize_tokens, quantize_tensor, multiply_blocks)
