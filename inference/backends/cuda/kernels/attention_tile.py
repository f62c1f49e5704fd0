"""Attention of a tile of queries to a range of keys, part of the kernels in `paged_attention`."""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attend_tile(
    rows,  # [ROWS, SIZE] queries
    row_positions,  # [ROWS]; -1 for a row that pads the tile
    first,  # position of the first key
    end,  # position after the last key
    blocks,  # the sequence's row of block_tables
    keys,  # the key of the KV head in slot 0
    values,  # the value of the KV head in slot 0
    key_stride,  # from slot to slot
    value_stride,
    scale,
    softcap,
    window,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_2: tl.constexpr,  # SIZE rounded up to a power of 2
    VALUE_SIZE: tl.constexpr,
    VALUE_SIZE_2: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns the sums of weighted values [ROWS, VALUE_SIZE_2], the sums of weights [ROWS], and the largest
    scores [ROWS], all float32. Scores are multiplied by log2(e): a weight is 2^(score - largest score).
    """
    offsets = tl.arange(0, KEYS)
    dims = tl.arange(0, SIZE_2)
    value_dims = tl.arange(0, VALUE_SIZE_2)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    weight_sums = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_SIZE_2], tl.float32)
    if not HAS_SOFTCAP:
        scale = scale * _LOG2_E
    # Each iteration loads the block numbers of the next one. So the addresses of keys and values depend on no
    # load of the same iteration, and Triton copies them to shared memory `num_stages - 1` iterations ahead.
    block = tl.load(blocks + (first + offsets) // BLOCK_SIZE, mask=first + offsets < end, other=0)
    for begin in range(first, end, KEYS):
        positions = begin + offsets
        in_range = positions < end
        slots = block.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
        following = positions + KEYS
        block = tl.load(blocks + following // BLOCK_SIZE, mask=following < end, other=0)
        key = tl.load(
            keys + slots[None, :] * key_stride + dims[:, None],
            mask=in_range[None, :] & (dims < SIZE)[:, None],
            other=0.0,
        )
        scores = tl.dot(rows, key, input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            # softcap * tanh(scores / softcap), where tanh(x) = 1 - 2 / (e^2x + 1)
            scores = (softcap - 2.0 * softcap / (tl.exp(scores * (2.0 / softcap)) + 1.0)) * _LOG2_E
        visible = positions[None, :] <= row_positions[:, None]
        if HAS_WINDOW:
            visible = visible & (positions[None, :] > row_positions[:, None] - window)
        scores = tl.where(visible & in_range[None, :], scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        value = tl.load(
            values + slots[:, None] * value_stride + value_dims[None, :],
            mask=in_range[:, None] & (value_dims < VALUE_SIZE)[None, :],
            other=0.0,
        )
        weight_sums = weight_sums * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
        largest = new_largest
    return sums, weight_sums, largest
