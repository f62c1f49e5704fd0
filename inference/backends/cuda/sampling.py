"""The sampling operations as Triton kernels. No operation waits for the device.

Only the size of the vocabulary is compiled into a kernel. So one call of each operation compiles all that
later calls need (for `truncate`: one with top_k and one with top_p).
"""

import torch
import triton

from inference.backends.cuda.kernels import sampling as kernels
from inference.backends.cuda.kernels import truncation as truncation_kernels
from inference.compute.sampling import operations
from inference.compute.sampling.operations import PIECE, SamplingOperations, Truncation

_COLUMNS = 4096  # per program
_MAX_TOP = 32  # tokens that the kernels of find_top can return
_BITS = 3  # of a weight that one pass of a search determines
_PASSES = 30 // _BITS  # weights are float32 numbers from 0 to 1, which have 30 significant bits


def choose_highest(logits: torch.Tensor) -> torch.Tensor:
    """See `inference.compute.sampling.operations.choose_highest`."""
    rows = len(logits)
    parts, ids, programs = _find_highest(logits)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    kernels.choose_highest[rows,](parts, ids, tokens, programs, PROGRAMS=triton.next_power_of_2(programs))
    return tokens


def weigh(logits: torch.Tensor, temperature: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `inference.compute.sampling.operations.weigh`. `piece` must be a power of 2, at most 4096."""
    rows, size = logits.shape
    parts, _, programs = _find_highest(logits)
    highest = logits.new_empty(rows)
    sums = logits.new_empty(rows, triton.cdiv(size, piece), dtype=torch.float64)
    kernels.weigh[rows, programs](
        *(logits, parts, temperature, highest, sums),
        SIZE=size,
        NUM_PIECES=sums.shape[1],
        PIECE=piece,
        PIECES=_COLUMNS // piece,
        PROGRAMS=triton.next_power_of_2(programs),
    )
    return highest, sums


def truncate(weights: torch.Tensor, sums: torch.Tensor, truncation: Truncation) -> None:
    """See `inference.compute.sampling.operations.truncate`.

    Searches for the lowest weight that stays, _BITS bits at a time, instead of sorting.
    """
    if truncation.top_k is not None:
        _cut(weights, sums, truncation.rows, truncation.top_k, by_count=True)
    if truncation.top_p is not None:
        _cut(weights, sums, truncation.rows, truncation.top_p, by_count=False)


def invert(
    weights: torch.Tensor, sums: torch.Tensor, uniform: torch.Tensor, highest: torch.Tensor
) -> torch.Tensor:
    """See `inference.compute.sampling.operations.invert`."""
    rows, size = weights.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=weights.device)
    num_pieces = sums.shape[1]
    kernels.invert[rows,](
        *(weights, sums, uniform, highest, tokens),
        SIZE=size,
        NUM_PIECES=num_pieces,
        PIECE=PIECE,
        PIECES=triton.next_power_of_2(num_pieces),
    )
    return tokens


def find_top(logprobs: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `inference.compute.sampling.operations.find_top`."""
    if k > _MAX_TOP:
        return operations.find_top(logprobs, k)
    rows, size = logprobs.shape
    programs = triton.cdiv(size, _COLUMNS)
    found = logprobs.new_empty(rows, programs, k)
    found_ids = torch.empty(rows, programs, k, dtype=torch.int32, device=logprobs.device)
    kernels.find_top[rows, programs](logprobs, found, found_ids, k, SIZE=size, COLUMNS=_COLUMNS)
    values = logprobs.new_empty(rows, k)
    ids = torch.empty(rows, k, dtype=torch.int64, device=logprobs.device)
    kernels.merge_top[rows,](
        *(found, found_ids, values, ids, k, programs),
        PROGRAMS=triton.next_power_of_2(programs),
        MAX_TOP=_MAX_TOP,
    )
    return values, ids


OPERATIONS = SamplingOperations(choose_highest, weigh, truncate, invert, find_top)


def _find_highest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The highest logit of each _COLUMNS columns of each row [S, programs], and its id."""
    rows, size = logits.shape
    programs = triton.cdiv(size, _COLUMNS)
    parts = logits.new_empty(rows, programs)
    ids = torch.empty(rows, programs, dtype=torch.int32, device=logits.device)
    kernels.find_highest[rows, programs](logits, parts, ids, SIZE=size, COLUMNS=_COLUMNS)
    return parts, ids, programs


def _cut(
    weights: torch.Tensor, sums: torch.Tensor, rows: torch.Tensor, limits: torch.Tensor, by_count: bool
) -> None:
    """Applies `limits` [R', 1]: with `by_count` top_k, else top_p."""
    count, size = len(rows), weights.shape[1]
    programs = triton.cdiv(size, _COLUMNS)
    lows = torch.empty(_PASSES, count, dtype=torch.int32, device=weights.device)
    bases = torch.empty(_PASSES, count, dtype=torch.float64, device=weights.device)
    totals = torch.empty(_PASSES, count, programs, 2**_BITS, dtype=torch.float64, device=weights.device)
    targets = torch.empty(count, dtype=torch.float64, device=weights.device)
    num_pieces = sums.shape[1]
    truncation_kernels.start[count,](
        *(sums, rows, limits, targets, lows, bases),
        SIZE=size,
        NUM_PIECES=num_pieces,
        PIECES=triton.next_power_of_2(num_pieces),
        BY_COUNT=by_count,
    )
    state = (rows, targets, lows, bases, totals)
    constants = {
        "SIZE": size,
        "PROGRAMS": triton.next_power_of_2(programs),
        "BITS": _BITS,
        "PASSES": _PASSES,
        "BY_COUNT": by_count,
        "num_warps": 8,  # with 4, a thread needs so many registers that few programs share a multiprocessor
    }
    for step in range(_PASSES):
        truncation_kernels.narrow[count, programs](
            weights, *state, step, count, COLUMNS=_COLUMNS, **constants
        )
    truncation_kernels.cut[count, programs](
        *(weights, sums, *state, count),
        NUM_PIECES=num_pieces,
        PIECE=PIECE,
        PIECES=_COLUMNS // PIECE,
        **constants,
    )
