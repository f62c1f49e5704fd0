"""Triton kernels for sampling: few passes over the logits, where torch needs one for each operation."""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)  # the lowest float32 number


@triton.jit
def find_highest(
    logits,  # [rows, SIZE] float32
    highest,  # [rows, programs]; nan if a logit of the part is nan
    ids,  # [rows, programs] int32: the lowest id of this logit
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Finds the highest logit of each part of a row. Grid: rows, parts of COLUMNS."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = part * COLUMNS + tl.arange(0, COLUMNS)
    numbers = tl.load(logits + row * SIZE + columns, mask=columns < SIZE, other=float("-inf"))
    is_nan = tl.max((numbers != numbers).to(tl.int32), 0)  # tl.max ignores nan
    found, index = tl.max(numbers, 0, return_indices=True)
    place = row * tl.num_programs(1) + part
    tl.store(highest + place, tl.where(is_nan > 0, float("nan"), found))
    tl.store(ids + place, part * COLUMNS + index)


@triton.jit(do_not_specialize=["programs"])
def choose_highest(
    highest,  # [rows, programs], see find_highest
    ids,  # [rows, programs]
    tokens,  # [rows] int64
    programs,
    PROGRAMS: tl.constexpr,
):
    """Chooses the id of each row's highest logit, or -1 if it is not finite. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, PROGRAMS)
    numbers = tl.load(highest + row * programs + parts, mask=parts < programs, other=float("-inf"))
    is_nan = tl.max((numbers != numbers).to(tl.int32), 0)
    found, part = tl.max(numbers, 0, return_indices=True)
    # With nan, the index may be that of a part that does not exist.
    token = tl.load(ids + row * programs + tl.minimum(part, programs - 1))
    finite = (is_nan == 0) & (tl.abs(found) < float("inf"))
    tl.store(tokens + row, tl.where(finite, token, -1).to(tl.int64))


@triton.jit
def weigh(
    logits,  # [rows, SIZE] float32, replaced by exp((logit - highest) / temperature)
    parts,  # [rows, programs], see find_highest
    temperatures,  # [rows]
    highest,  # [rows]
    sums,  # [rows, NUM_PIECES] float64: each of PIECE results
    SIZE: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,  # per program
    PROGRAMS: tl.constexpr,
):
    """Turns logits into weights, and adds up each piece of PIECE weights. Grid: rows, groups of PIECES."""
    row, programs = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    others = tl.arange(0, PROGRAMS)
    found = tl.load(parts + row * programs + others, mask=others < programs, other=float("-inf"))
    is_nan = tl.max((found != found).to(tl.int32), 0)
    top = tl.where(is_nan > 0, float("nan"), tl.max(found, 0))
    if tl.program_id(1) == 0:
        tl.store(highest + row, top)
    pieces = tl.program_id(1) * PIECES + tl.arange(0, PIECES)
    columns = pieces[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    within = columns < SIZE
    inputs = logits + row * SIZE + columns
    numbers = tl.load(inputs, mask=within, other=float("-inf"))
    weights = tl.exp((numbers - top) / tl.load(temperatures + row))
    tl.store(inputs, weights, mask=within)
    kept = tl.where(within, weights, 0.0).to(tl.float64)
    tl.store(sums + row * NUM_PIECES + pieces, tl.sum(kept, 1), mask=pieces < NUM_PIECES)


@triton.jit
def _first_above(target, cumulative, parts, indices):
    """The first index at which the cumulative sum exceeds the target. Rounding never gives a part of 0."""
    found = tl.min(tl.where((cumulative > target) & (parts > 0), indices, 0x7FFFFFFF), 0)
    return tl.minimum(found, tl.max(tl.where(parts > 0, indices, 0), 0))


@triton.jit
def invert(
    weights,  # [rows, SIZE] float32
    sums,  # [rows, NUM_PIECES] float64: each of PIECE weights
    uniforms,  # [rows] float64 in [0, 1)
    highest,  # [rows]
    tokens,  # [rows] int64
    SIZE: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,  # the next power of 2
):
    """Samples a token for each row: first its piece, then the token. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    pieces = tl.arange(0, PIECES)
    parts = tl.load(sums + row * NUM_PIECES + pieces, mask=pieces < NUM_PIECES, other=0.0)
    cumulative = tl.cumsum(parts, 0)
    target = tl.load(uniforms + row) * tl.max(cumulative, 0)
    piece = _first_above(target, cumulative, parts, pieces)
    before = tl.sum(tl.where(pieces == piece, cumulative - parts, 0.0), 0)
    ids = piece * PIECE + tl.arange(0, PIECE)
    kept = tl.load(weights + row * SIZE + ids, mask=ids < SIZE, other=0.0).to(tl.float64)
    token = _first_above(target - before, tl.cumsum(kept, 0), kept, ids)
    finite = tl.abs(tl.load(highest + row)) < float("inf")
    tl.store(tokens + row, tl.where(finite, token, -1).to(tl.int64))


@triton.jit(do_not_specialize=["k"])
def find_top(
    logprobs,  # [rows, SIZE] float32
    values,  # [rows, programs, k]; -inf where the part has no more entries
    ids,  # [rows, programs, k] int32
    k,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Finds the k highest values of each part, equal ones by id. Grid: rows, parts of COLUMNS."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    indices = tl.arange(0, COLUMNS)
    columns = part * COLUMNS + indices
    numbers = tl.load(logprobs + row * SIZE + columns, mask=columns < SIZE, other=float("-inf"))
    # From here on, -inf marks entries that do not exist or are taken.
    numbers = tl.where((columns < SIZE) & ((numbers < LOWEST) | (numbers != numbers)), LOWEST, numbers)
    place = (row * tl.num_programs(1) + part) * k
    for i in range(k):
        found, index = tl.max(numbers, 0, return_indices=True)
        tl.store(values + place + i, found)
        tl.store(ids + place + i, part * COLUMNS + index)
        numbers = tl.where(indices == index, float("-inf"), numbers)


@triton.jit(do_not_specialize=["k", "programs"])
def merge_top(
    found,  # [rows, programs, k], see find_top
    found_ids,  # [rows, programs, k]
    values,  # [rows, k] float32
    ids,  # [rows, k] int64
    k,
    programs,
    PROGRAMS: tl.constexpr,
    MAX_TOP: tl.constexpr,
):
    """Finds the k highest values of all parts, equal ones by id. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    indices = tl.arange(0, PROGRAMS * MAX_TOP)  # in the order of parts, and so equal values by id
    part, rank = indices // MAX_TOP, indices % MAX_TOP
    exists = (part < programs) & (rank < k)
    places = (row * programs + part) * k + rank
    numbers = tl.load(found + places, mask=exists, other=float("-inf"))
    tokens = tl.load(found_ids + places, mask=exists, other=0)
    for i in range(k):
        value, index = tl.max(numbers, 0, return_indices=True)
        token = tl.sum(tl.where(indices == index, tokens, 0), 0)
        tl.store(values + row * k + i, tl.where(value <= LOWEST, float("-inf"), value))
        tl.store(ids + row * k + i, token.to(tl.int64))
        numbers = tl.where(indices == index, float("-inf"), numbers)
