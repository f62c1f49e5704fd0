"""Triton kernels for attention over the paged KV cache: flash attention (Dao et al., arXiv:2205.14135) that
finds keys by the block table. For single tokens it also splits the context (arXiv:2311.01282).

A program serves one KV head and a tile of query rows. There is one row per token and query head: all `GROUP`
query heads that share the KV head are in the tile, so keys and values are read once for all of them.
"""

import triton
import triton.language as tl


@triton.jit
def _attend(
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
    for begin in range(first, end, KEYS):
        positions = begin + offsets
        in_range = positions < end
        block = tl.load(blocks + positions // BLOCK_SIZE, mask=in_range, other=0).to(tl.int64)
        slots = block * BLOCK_SIZE + positions % BLOCK_SIZE
        key = tl.load(
            keys + slots[None, :] * key_stride + dims[:, None],
            mask=in_range[None, :] & (dims < SIZE)[:, None],
            other=0.0,
        )
        scores = tl.dot(rows, key, input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            # softcap * tanh(scores / softcap), where tanh(x) = 1 - 2 / (e^2x + 1)
            scores = softcap - 2.0 * softcap / (tl.exp(scores * (2.0 / softcap)) + 1.0)
        scores = scores * 1.4426950408889634  # log2(e)
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


@triton.jit
def attend_single(
    queries,
    keys,
    values,
    block_tables,
    positions,
    out,  # [sequences, heads, VALUE_SIZE]; written if SPLITS is 1
    part_sums,  # [sequences, heads, SPLITS, VALUE_SIZE] float32; written if SPLITS > 1, as are the next two
    part_weights,  # [sequences, heads, SPLITS] float32: sums of weights
    part_largest,  # [sequences, heads, SPLITS] float32: largest scores
    query_head_stride,
    query_token_stride,
    key_stride,
    value_stride,
    block_tables_stride,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_2: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_SIZE_2: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attends for one token of each sequence. Grid: sequences, KV_HEADS, SPLITS."""
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + sequence)
    end = (position + 1).to(tl.int32)
    first = tl.zeros_like(end)
    if HAS_WINDOW:
        first = tl.maximum(end - window, 0)
    share = tl.cdiv(tl.cdiv(end - first, KEYS), SPLITS) * KEYS
    first += split * share
    row = tl.arange(0, ROWS)
    heads = kv_head * GROUP + row
    dims = tl.arange(0, SIZE_2)
    rows = tl.load(
        queries + sequence * query_token_stride + heads[:, None] * query_head_stride + dims[None, :],
        mask=(row < GROUP)[:, None] & (dims < SIZE)[None, :],
        other=0.0,
    )
    sums, weight_sums, largest = _attend(
        rows,
        tl.where(row < GROUP, position, -1),
        first,
        tl.minimum(end, first + share),
        block_tables + sequence.to(tl.int64) * block_tables_stride,
        keys + kv_head * SIZE,
        values + kv_head * VALUE_SIZE,
        key_stride,
        value_stride,
        scale,
        softcap,
        window,
        BLOCK_SIZE,
        ROWS,
        KEYS,
        SIZE,
        SIZE_2,
        VALUE_SIZE,
        VALUE_SIZE_2,
        HAS_SOFTCAP,
        HAS_WINDOW,
        PRECISION,
    )
    value_dims = tl.arange(0, VALUE_SIZE_2)
    output_row = sequence * KV_HEADS * GROUP + heads
    mask = (row < GROUP)[:, None] & (value_dims < VALUE_SIZE)[None, :]
    if SPLITS == 1:
        attended = sums / tl.where(row < GROUP, weight_sums, 1.0)[:, None]
        tl.store(
            out + output_row[:, None] * VALUE_SIZE + value_dims[None, :],
            attended.to(out.dtype.element_ty),
            mask=mask,
        )
    else:
        part = output_row * SPLITS + split
        tl.store(part_sums + part[:, None] * VALUE_SIZE + value_dims[None, :], sums, mask=mask)
        tl.store(part_weights + part, weight_sums, mask=row < GROUP)
        tl.store(part_largest + part, largest, mask=row < GROUP)


@triton.jit
def combine(
    part_sums,
    part_weights,
    part_largest,
    out,  # [sequences, heads, VALUE_SIZE]
    SPLITS: tl.constexpr,
    SPLITS_2: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_SIZE_2: tl.constexpr,
):
    """Combines the results of `attend_single` for the parts of each context. Grid: sequences * heads."""
    head = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, SPLITS_2)
    value_dims = tl.arange(0, VALUE_SIZE_2)
    parts = head * SPLITS + splits
    largest = tl.load(part_largest + parts, mask=splits < SPLITS, other=float("-inf"))
    shrink = tl.exp2(largest - tl.max(largest, 0))
    weights = tl.load(part_weights + parts, mask=splits < SPLITS, other=0.0)
    sums = tl.load(
        part_sums + parts[:, None] * VALUE_SIZE + value_dims[None, :],
        mask=(splits < SPLITS)[:, None] & (value_dims < VALUE_SIZE)[None, :],
        other=0.0,
    )
    attended = tl.sum(sums * shrink[:, None], 0) / tl.sum(weights * shrink, 0)
    tl.store(
        out + head * VALUE_SIZE + value_dims,
        attended.to(out.dtype.element_ty),
        mask=value_dims < VALUE_SIZE,
    )


@triton.jit
def attend_chunks(
    queries,
    keys,
    values,
    block_tables,
    cu_seqlens,
    positions,
    out,  # [tokens, heads, VALUE_SIZE]
    first_sequence,
    num_sequences,
    query_head_stride,
    query_token_stride,
    key_stride,
    value_stride,
    block_tables_stride,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    TOKENS: tl.constexpr,  # per tile
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_2: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    VALUE_SIZE_2: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attends for several tokens of each sequence, from `first_sequence` on. Grid: tiles, KV_HEADS.

    A sequence of n tokens has ceil(n / TOKENS) tiles, or one more, which stays empty. The first tile of
    sequence i is number (cu_seqlens[i] - cu_seqlens[first_sequence]) // TOKENS + i - first_sequence.
    """
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    # Binary search for the sequence of this tile.
    origin = tl.load(cu_seqlens + first_sequence)
    low, high = first_sequence, num_sequences - 1
    while low < high:
        middle = (low + high + 1) // 2
        begins = (tl.load(cu_seqlens + middle) - origin) // TOKENS + middle - first_sequence
        if begins <= tile:
            low = middle
        else:
            high = middle - 1
    sequence_start = tl.load(cu_seqlens + low)
    sequence_end = tl.load(cu_seqlens + low + 1)
    tile_of_sequence = tile - ((sequence_start - origin) // TOKENS + low - first_sequence)
    start = sequence_start + tile_of_sequence * TOKENS
    if start < sequence_end:
        row = tl.arange(0, ROWS)
        token = start + row // GROUP
        heads = kv_head * GROUP + row % GROUP
        valid = (row < TOKENS * GROUP) & (token < sequence_end)
        position = tl.load(positions + start)
        last = tl.minimum(sequence_end - start, TOKENS) - 1 + position
        end = (last + 1).to(tl.int32)
        first = tl.zeros_like(end)
        if HAS_WINDOW:
            first = tl.maximum(position - window + 1, 0).to(tl.int32) // KEYS * KEYS
        dims = tl.arange(0, SIZE_2)
        rows = tl.load(
            queries
            + token[:, None] * query_token_stride
            + heads[:, None] * query_head_stride
            + dims[None, :],
            mask=valid[:, None] & (dims < SIZE)[None, :],
            other=0.0,
        )
        sums, weight_sums, _ = _attend(
            rows,
            tl.where(valid, position + row // GROUP, -1),
            first,
            end,
            block_tables + low.to(tl.int64) * block_tables_stride,
            keys + kv_head * SIZE,
            values + kv_head * VALUE_SIZE,
            key_stride,
            value_stride,
            scale,
            softcap,
            window,
            BLOCK_SIZE,
            ROWS,
            KEYS,
            SIZE,
            SIZE_2,
            VALUE_SIZE,
            VALUE_SIZE_2,
            HAS_SOFTCAP,
            HAS_WINDOW,
            PRECISION,
        )
        value_dims = tl.arange(0, VALUE_SIZE_2)
        attended = sums / tl.where(valid, weight_sums, 1.0)[:, None]
        tl.store(
            out + (token * KV_HEADS * GROUP + heads)[:, None] * VALUE_SIZE + value_dims[None, :],
            attended.to(out.dtype.element_ty),
            mask=valid[:, None] & (value_dims < VALUE_SIZE)[None, :],
        )
