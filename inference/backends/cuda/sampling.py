"""How logits become probabilities, by Triton kernels that read them twice."""

import torch
import triton

from inference.backends.cuda.kernels import sampling as kernels

_COLUMNS = 4096  # of a program


def weigh(logits: torch.Tensor, temperature: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `inference.compute.sampler.weigh`, for pieces that are a power of 2, up to 4096."""
    rows, size = logits.shape
    programs = triton.cdiv(size, _COLUMNS)
    parts = logits.new_empty(rows, programs)
    kernels.find_highest[rows, programs](logits, parts, size, COLUMNS=_COLUMNS)
    highest = parts.amax(-1)  # nan if one is
    num_pieces = triton.cdiv(size, piece)
    sums = logits.new_empty(rows, num_pieces, dtype=torch.float64)
    kernels.weigh[rows, programs](
        logits, highest, temperature, sums, size, num_pieces, PIECE=piece, PIECES=_COLUMNS // piece
    )
    return highest, sums
