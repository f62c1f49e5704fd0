"""Triton kernels for sampling: two passes over the logits, where torch needs one for each operation."""

import triton
import triton.language as tl


@triton.jit
def find_highest(
    logits,  # [rows, size] float32
    highest,  # [rows, programs]; nan if a logit of the piece is nan
    size,
    COLUMNS: tl.constexpr,
):
    """Finds the highest logit of each piece. Grid: rows, pieces of COLUMNS."""
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = piece * COLUMNS + tl.arange(0, COLUMNS)
    numbers = tl.load(logits + row * size + columns, mask=columns < size, other=float("-inf"))
    is_nan = tl.max((numbers != numbers).to(tl.int32), 0)  # tl.max ignores nan
    found = tl.where(is_nan > 0, float("nan"), tl.max(numbers, 0))
    tl.store(highest + row * tl.num_programs(1) + piece, found)


@triton.jit
def weigh(
    logits,  # [rows, size] float32, replaced by exp((logit - highest) / temperature)
    highest,  # [rows]
    temperatures,  # [rows]
    sums,  # [rows, num_pieces] float64: each of PIECE results
    size,
    num_pieces,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,  # per program
):
    """Turns logits into weights, and adds up each piece of PIECE weights. Grid: rows, groups of PIECES."""
    row = tl.program_id(0).to(tl.int64)
    pieces = tl.program_id(1) * PIECES + tl.arange(0, PIECES)
    columns = pieces[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    within = columns < size
    inputs = logits + row * size + columns
    numbers = tl.load(inputs, mask=within, other=float("-inf"))
    weights = tl.exp((numbers - tl.load(highest + row)) / tl.load(temperatures + row))
    tl.store(inputs, weights, mask=within)
    kept = tl.where(within, weights, 0.0).to(tl.float64)
    tl.store(sums + row * num_pieces + pieces, tl.sum(kept, 1), mask=pieces < num_pieces)
