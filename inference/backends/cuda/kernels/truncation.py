"""Triton kernels for top_k and top_p: a search for the lowest weight that stays, without sorting.

Weights are float32 numbers from 0 to 1. Their bits, read as integers, have the same order. The search keeps
an interval of bits that starts at `low`. The weights above the interval have the sum `base` (or the number
`base`, for top_k), which is below the target. Each pass divides the interval into bins, adds up each bin,
and goes on in the bin that reaches the target. In the last pass, a bin is a single number. All programs of a
row derive the interval from the totals of the pass before, in the same order. So they agree without waiting.
"""

import triton
import triton.language as tl

HIGHEST_BITS = tl.constexpr(0x3F800000)  # of 1.0


@triton.jit(do_not_specialize=["count"])
def start(
    sums,  # [all rows, NUM_PIECES] float64
    rows,  # [count] int64
    limits,  # [count] top_k int64, or top_p float64
    targets,  # [count] float64: the search ends at the first weight that reaches this sum (this number)
    lows,  # [PASSES, count] int32; -1: the row keeps all its tokens
    bases,  # [PASSES, count] float64
    SIZE: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    PIECES: tl.constexpr,  # the next power of 2
    BY_COUNT: tl.constexpr,
):
    """Sets the target and the first interval of each row. Grid: rows."""
    i = tl.program_id(0)
    limit = tl.load(limits + i)
    if BY_COUNT:
        tl.store(targets + i, limit.to(tl.float64))
        tl.store(lows + i, tl.where(limit < SIZE, 0, -1))
    else:
        pieces = tl.arange(0, PIECES)
        row = tl.load(rows + i)
        parts = tl.load(sums + row * NUM_PIECES + pieces, mask=pieces < NUM_PIECES, other=0.0)
        total = tl.sum(parts, 0)
        tl.store(targets + i, tl.maximum(limit * total, 1e-300))
        # All weights below this one have a sum of less than (1 - top_p) * total.
        lowest = ((1.0 - limit) * total * 0.999 / SIZE).to(tl.float32)
        low = tl.minimum(tl.maximum(lowest.to(tl.int32, bitcast=True), 1), HIGHEST_BITS)
        tl.store(lows + i, tl.where(limit < 1.0, low, -1))
    tl.store(bases + i, 0.0)


@triton.jit
def _load_totals(totals, programs, PROGRAMS: tl.constexpr, BINS: tl.constexpr):
    """The totals [PROGRAMS, BINS] of a row's parts."""
    parts, bins = tl.arange(0, PROGRAMS), tl.arange(0, BINS)
    places = parts[:, None] * BINS + bins[None, :]
    return tl.load(totals + places, mask=(parts < programs)[:, None], other=0.0)


@triton.jit
def _choose_bin(parts, base, target, BINS: tl.constexpr):
    """The bin that reaches the target, and the sum above it. Bins are in falling order of their weights."""
    sums = tl.sum(parts, 0)
    reached = base + tl.cumsum(sums, 0)
    chosen = tl.minimum(tl.sum((reached < target).to(tl.int32), 0), BINS - 1)
    above = base + tl.sum(tl.where(tl.arange(0, BINS) < chosen, sums, 0.0), 0)
    return chosen, above


@triton.jit(do_not_specialize=["step", "count"])
def narrow(
    weights,  # [all rows, SIZE] float32
    rows,  # [count] int64
    targets,  # [count] float64
    lows,  # [PASSES, count] int32
    bases,  # [PASSES, count] float64
    totals,  # [PASSES, count, programs, 2**BITS] float64: of each bin, in falling order
    step,  # the number of the pass
    count,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BITS: tl.constexpr,
    PASSES: tl.constexpr,
    BY_COUNT: tl.constexpr,
):
    """Adds up the bins of one pass. Grid: rows, parts of COLUMNS."""
    BINS: tl.constexpr = 1 << BITS
    i, part, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    shift = (PASSES - 1 - step) * BITS
    low = tl.load(lows + i)
    if low >= 0:
        base = tl.load(bases + i)
        has_weights = True
        if step > 0:
            place = (step - 1) * count + i
            low = tl.load(lows + place)
            before = totals + place.to(tl.int64) * programs * BINS
            sums = _load_totals(before, programs, PROGRAMS, BINS)
            chosen, base = _choose_bin(sums, tl.load(bases + place), tl.load(targets + i), BINS)
            # A pass whose interval has only one bin did not look at the weights.
            looked = ((HIGHEST_BITS - low) >> (shift + BITS)) > 0
            has_weights = (tl.load(before + part * BINS + chosen) > 0) | (looked == 0)
            low += (BINS - 1 - chosen) << (shift + BITS)
        place = step * count + i
        if (part == 0) & (step > 0):
            tl.store(lows + place, low)
            tl.store(bases + place, base)
        own = totals + (place.to(tl.int64) * programs + part) * BINS
        has_bins = (((HIGHEST_BITS - low) >> shift) > 0) | (step == PASSES - 1)  # the last pass counts ties
        if has_weights & has_bins:
            columns = part * COLUMNS + tl.arange(0, COLUMNS)
            row = tl.load(rows + i)
            numbers = tl.load(weights + row * SIZE + columns, mask=columns < SIZE, other=0.0)
            digits = (numbers.to(tl.int32, bitcast=True) - low) >> shift
            digits = tl.where(columns < SIZE, digits, -1)
            exact = numbers.to(tl.float64)
            for b in range(BINS):
                inside = digits == BINS - 1 - b
                if BY_COUNT:
                    total = tl.sum(inside.to(tl.int32), 0).to(tl.float64)
                else:
                    total = tl.sum(tl.where(inside, exact, 0.0), 0)
                tl.store(own + b, total)
        else:
            bins = tl.arange(0, BINS)
            tl.store(own + bins, tl.zeros([BINS], tl.float64))


@triton.jit(do_not_specialize=["count"])
def cut(
    weights,  # [all rows, SIZE] float32
    sums,  # [all rows, NUM_PIECES] float64
    rows,  # [count] int64
    targets,  # [count] float64
    lows,  # [PASSES, count] int32
    bases,  # [PASSES, count] float64
    totals,  # [PASSES, count, programs, 2**BITS] float64
    count,
    SIZE: tl.constexpr,
    NUM_PIECES: tl.constexpr,
    PIECE: tl.constexpr,
    PIECES: tl.constexpr,  # per program
    PROGRAMS: tl.constexpr,
    BITS: tl.constexpr,
    PASSES: tl.constexpr,
    BY_COUNT: tl.constexpr,
):
    """Sets the weights that do not stay to 0, and adds up the pieces again. Grid: rows, groups of PIECES."""
    BINS: tl.constexpr = 1 << BITS
    i, part, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    if tl.load(lows + i) >= 0:
        place = (PASSES - 1) * count + i
        target = tl.load(targets + i)
        bins = _load_totals(totals + place.to(tl.int64) * programs * BINS, programs, PROGRAMS, BINS)
        chosen, above = _choose_bin(bins, tl.load(bases + place), target, BINS)
        lowest = tl.load(lows + place) + BINS - 1 - chosen  # the bits of the lowest weight that stays
        equal = tl.sum(tl.where(tl.arange(0, BINS)[None, :] == chosen, bins, 0.0), 1)  # of each part
        # How many weights equal to the lowest one stay, and how many of them are in the parts before.
        if BY_COUNT:
            kept = target - above
        else:
            value = tl.maximum(lowest.to(tl.float32, bitcast=True).to(tl.float64), 1e-46)
            kept = tl.ceil((target - above) / value)
            equal = tl.floor(equal / value + 0.5)  # exact: the sum of up to 4096 equal float32 numbers
        kept = tl.minimum(tl.maximum(kept, 1.0), SIZE).to(tl.int32)
        before = tl.sum(tl.where(tl.arange(0, PROGRAMS) < part, equal, 0.0), 0).to(tl.int32)

        pieces = part * PIECES + tl.arange(0, PIECES)
        columns = pieces[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
        within = columns < SIZE
        row = tl.load(rows + i)
        inputs = weights + row * SIZE + columns
        numbers = tl.load(inputs, mask=within, other=0.0)
        bits = numbers.to(tl.int32, bitcast=True)
        ties = (within & (bits == lowest)).to(tl.int32)
        in_piece = tl.sum(ties, 1)
        rank = before + (tl.cumsum(in_piece, 0) - in_piece)[:, None] + tl.cumsum(ties, 1)  # from 1
        stays = (bits > lowest) | ((ties > 0) & (rank <= kept))
        tl.store(inputs, tl.zeros([PIECES, PIECE], tl.float32), mask=within & (stays == 0))
        exact = tl.where(within & stays, numbers, 0.0).to(tl.float64)
        tl.store(sums + row * NUM_PIECES + pieces, tl.sum(exact, 1), mask=pieces < NUM_PIECES)
