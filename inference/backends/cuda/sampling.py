"""Turns logits into unnormalised probabilities by Triton kernels that read the logits twice."""

import torch
import triton

from inference.backends.cuda.kernels import sampling as kernels

_COLUMNS = 4096  # per program


def weigh(logits: torch.Tensor, temperature: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `inference.compute.sampler.weigh`. `piece` must be a power of 2, at most 4096."""
    rows, size = logits.shape
    programs = triton.cdiv(size, _COLUMNS)
    parts = logits.new_empty(rows, programs)
    kernels.find_highest[rows, programs](logits, parts, size, COLUMNS=_COLUMNS)
    highest = parts.amax(-1)  # nan if a logit of the row is nan
    num_pieces = triton.cdiv(size, piece)
    sums = logits.new_empty(rows, num_pieces, dtype=torch.float64)
    kernels.weigh[rows, programs](
        logits, highest, temperature, sums, size, num_pieces, PIECE=piece, PIECES=_COLUMNS // piece
    )
    return highest, sums
