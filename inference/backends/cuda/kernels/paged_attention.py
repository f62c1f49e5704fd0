"""Triton kernels for attention over the paged KV cache: flash attention (Dao et al., arXiv:2205.14135) that
finds keys by the block table. For single tokens it also splits the context (arXiv:2311.01282).

A program serves one KV head and a tile of query rows. There is one row per token and query head: all `GROUP`
query heads that share the KV head are in the tile, so keys and values are read once for all of them.

Triton compiles another kernel for an integer that is 1 or divisible by 16, and for an address that is
divisible by 16. Arguments that differ between batches are not specialized, so that no batch compiles one.
"""

import triton
import triton.language as tl

from inference.backends.cuda.kernels.attention_tile import attend_tile


@triton.jit(
    do_not_specialize=[
        "block_tables",
        "positions",
        "query_head_stride",
        "query_token_stride",
        "block_tables_stride",
        "window",
    ]
)
def attend_single(
    queries,
    keys,
    values,
    block_tables,
    positions,
    out,  # [sequences, heads, VALUE_SIZE]; written unless SPLIT
    part_sums,  # [sequences, heads, splits, VALUE_SIZE] float32; written if SPLIT, as are the next two
    part_weights,  # [sequences, heads, splits] float32: sums of weights; 0 for a part without keys
    part_largest,  # [sequences, heads, splits] float32: largest scores
    query_head_stride,  # in units of SIZE
    query_token_stride,  # in units of SIZE
    key_stride,
    value_stride,
    block_tables_stride,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SPLIT: tl.constexpr,  # whether several programs share a context
    MIN_TILES: tl.constexpr,  # of a part, in units of KEYS
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
    """Attends for one token of each sequence. Grid: sequences, KV_HEADS, splits.

    A short context has fewer parts than splits. The programs of the other parts only write `part_weights`.
    """
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    position = tl.load(positions + sequence)
    end = (position + 1).to(tl.int32)
    first = tl.zeros_like(end)
    if HAS_WINDOW:
        first = tl.maximum(end - window, 0)
    if SPLIT:
        share = tl.maximum(tl.cdiv(tl.cdiv(end - first, KEYS), splits), MIN_TILES) * KEYS
        first += split * share
        end = tl.minimum(end, first + share)
    row = tl.arange(0, ROWS)
    heads = kv_head * GROUP + row
    output_row = sequence * KV_HEADS * GROUP + heads
    part = output_row * splits + split
    if first < end:
        dims = tl.arange(0, SIZE_2)
        query = sequence.to(tl.int64) * query_token_stride + heads * query_head_stride
        rows = tl.load(
            queries + query[:, None] * SIZE + dims[None, :],
            mask=(row < GROUP)[:, None] & (dims < SIZE)[None, :],
            other=0.0,
        )
        sums, weight_sums, largest = attend_tile(
            rows,
            tl.where(row < GROUP, position, -1),
            first,
            end,
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
        mask = (row < GROUP)[:, None] & (value_dims < VALUE_SIZE)[None, :]
        if SPLIT:
            tl.store(part_sums + part[:, None] * VALUE_SIZE + value_dims[None, :], sums, mask=mask)
            tl.store(part_weights + part, weight_sums, mask=row < GROUP)
            tl.store(part_largest + part, largest, mask=row < GROUP)
        else:
            attended = sums / tl.where(row < GROUP, weight_sums, 1.0)[:, None]
            tl.store(
                out + output_row[:, None] * VALUE_SIZE + value_dims[None, :],
                attended.to(out.dtype.element_ty),
                mask=mask,
            )
    else:
        tl.store(part_weights + part, tl.zeros([ROWS], tl.float32), mask=row < GROUP)


@triton.jit(do_not_specialize=["splits"])
def combine(
    part_sums,
    part_weights,
    part_largest,
    out,  # [sequences, heads, VALUE_SIZE]
    splits,
    MAX_SPLITS: tl.constexpr,  # a power of 2
    VALUE_SIZE: tl.constexpr,
    VALUE_SIZE_2: tl.constexpr,
):
    """Combines the results of `attend_single` for the parts of each context. Grid: sequences * heads.

    The sums and the largest score of a part without keys are not initialized, so they are replaced.
    """
    head = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, MAX_SPLITS)
    value_dims = tl.arange(0, VALUE_SIZE_2)
    parts = head * splits + split
    weights = tl.load(part_weights + parts, mask=split < splits, other=0.0)
    largest = tl.load(part_largest + parts, mask=split < splits, other=0.0)
    sums = tl.load(
        part_sums + parts[:, None] * VALUE_SIZE + value_dims[None, :],
        mask=(split < splits)[:, None] & (value_dims < VALUE_SIZE)[None, :],
        other=0.0,
    )
    has_keys = weights != 0.0  # nan if a score is nan: then the result must be nan
    largest = tl.where(has_keys, largest, float("-inf"))
    sums = tl.where(has_keys[:, None], sums, 0.0)
    shrink = tl.exp2(largest - tl.max(largest, 0))
    attended = tl.sum(sums * shrink[:, None], 0) / tl.sum(weights * shrink, 0)
    tl.store(
        out + head * VALUE_SIZE + value_dims,
        attended.to(out.dtype.element_ty),
        mask=value_dims < VALUE_SIZE,
    )


@triton.jit(
    do_not_specialize=[
        "block_tables",
        "cu_seqlens",
        "positions",
        "first_sequence",
        "num_sequences",
        "query_head_stride",
        "query_token_stride",
        "block_tables_stride",
        "window",
    ]
)
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
    query_head_stride,  # in units of SIZE
    query_token_stride,  # in units of SIZE
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
    """Attends for several tokens of each sequence, from `first_sequence` on. Grid: tiles * KV_HEADS.

    The last tiles come first: the tokens at the end of a prompt see the most keys, and their programs take
    the longest.
    A sequence of n tokens has ceil(n / TOKENS) tiles, or one more, which stays empty. The first tile of
    sequence i is number (cu_seqlens[i] - cu_seqlens[first_sequence]) // TOKENS + i - first_sequence.
    """
    program = tl.program_id(0)
    tile, kv_head = (tl.num_programs(0) - 1 - program) // KV_HEADS, program % KV_HEADS
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
        query = token * query_token_stride + heads * query_head_stride
        rows = tl.load(
            queries + query[:, None] * SIZE + dims[None, :],
            mask=valid[:, None] & (dims < SIZE)[None, :],
            other=0.0,
        )
        sums, weight_sums, _ = attend_tile(
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
