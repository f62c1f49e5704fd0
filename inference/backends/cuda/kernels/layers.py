"""Triton kernels for a decoder layer's operations between its matrix products, each in one pass over memory.

They compute in float32 and round where transformers' models round. The one exception is the rotation: it is
rounded once, while transformers' models also round the products.
"""

import triton
import triton.language as tl


@triton.jit
def normalize(
    x,  # [rows, SIZE]
    residual,  # [rows, SIZE]; read if ADD
    total,  # [rows, SIZE]: x + residual; written if ADD
    weight,  # [SIZE]
    out,  # [rows, SIZE]
    epsilon,
    ADD: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_2: tl.constexpr,
):
    """out = x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich, arXiv:1910.07467).

    If ADD, `total` takes the place of x. Grid: rows.
    """
    columns = tl.arange(0, SIZE_2)
    within = columns < SIZE
    inputs = tl.program_id(0).to(tl.int64) * SIZE + columns
    row = tl.load(x + inputs, mask=within, other=0.0)
    if ADD:
        row = (row.to(tl.float32) + tl.load(residual + inputs, mask=within, other=0.0).to(tl.float32)).to(
            row.dtype
        )
        tl.store(total + inputs, row, mask=within)
    numbers = row.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(numbers * numbers, 0) / SIZE + epsilon)
    normal = (numbers * factor).to(row.dtype).to(tl.float32)
    scaled = normal * tl.load(weight + columns, mask=within, other=0.0).to(tl.float32)
    tl.store(out + inputs, scaled.to(row.dtype), mask=within)


@triton.jit
def _weigh_heads(
    normal,  # [ROWS, columns] float32
    is_query,  # [ROWS, 1]
    query_weight,
    key_weight,
    column,
    within,
    dtype: tl.constexpr,
):
    """Multiplies each row by the weights of queries or of keys. Rounds to `dtype` before and after."""
    of_query = tl.load(query_weight + column, mask=within, other=0.0).to(tl.float32)
    of_key = tl.load(key_weight + column, mask=within, other=0.0).to(tl.float32)
    weight = tl.where(is_query, of_query[None, :], of_key[None, :])
    return (normal.to(dtype).to(tl.float32) * weight).to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["slots"])
def rotate_and_store(
    qkv,  # [tokens, HEADS + 2 * KV_HEADS, SIZE]; the queries are changed in place
    cosines,  # [tokens, SIZE]
    sines,
    keys,  # [slots, KV_HEADS, SIZE]
    values,
    slots,  # [tokens]
    query_weight,  # [SIZE]; read if NORM
    key_weight,  # [SIZE]; read if NORM
    epsilon,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF_2: tl.constexpr,  # SIZE // 2 rounded up to a power of 2
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
):
    """Rotates queries and keys by their positions (Su et al., arXiv:2104.09864). Stores keys and values.

    If NORM, each head of the queries and keys is first replaced by its RMS norm, as `normalize` computes it.
    A program changes ROWS of a token's heads. Grid: tokens, pieces of ROWS heads.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF_2)
    within = column < SIZE // 2
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & within[None, :]
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * SIZE + column[None, :]
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + SIZE // 2, mask=inside, other=0.0)
    x, y = first.to(tl.float32), second.to(tl.float32)
    is_query = (head < HEADS)[:, None]
    if NORM:
        factor = 1.0 / tl.sqrt((tl.sum(x * x, 1) + tl.sum(y * y, 1)) / SIZE + epsilon)
        x = _weigh_heads(x * factor[:, None], is_query, query_weight, key_weight, column, within, first.dtype)
        later = column + SIZE // 2
        y = _weigh_heads(y * factor[:, None], is_query, query_weight, key_weight, later, within, first.dtype)
    angle = token * SIZE + column
    cosine = tl.load(cosines + angle, mask=within, other=0.0).to(tl.float32)[None, :]
    sine = tl.load(sines + angle, mask=within, other=0.0).to(tl.float32)[None, :]
    cosine_2 = tl.load(cosines + angle + SIZE // 2, mask=within, other=0.0).to(tl.float32)[None, :]
    sine_2 = tl.load(sines + angle + SIZE // 2, mask=within, other=0.0).to(tl.float32)[None, :]
    rotated = (x * cosine - y * sine).to(first.dtype)
    rotated_2 = (y * cosine_2 + x * sine_2).to(first.dtype)
    tl.store(source, rotated, mask=inside & is_query)
    tl.store(source + SIZE // 2, rotated_2, mask=inside & is_query)
    slot = tl.load(slots + token).to(tl.int64)
    is_key = (head >= HEADS)[:, None] & (head < HEADS + KV_HEADS)[:, None]
    target = (slot * KV_HEADS + head - HEADS)[:, None] * SIZE + column[None, :]
    tl.store(keys + target, rotated, mask=inside & is_key)
    tl.store(keys + target + SIZE // 2, rotated_2, mask=inside & is_key)
    is_value = (head >= HEADS + KV_HEADS)[:, None]
    target = (slot * KV_HEADS + head - HEADS - KV_HEADS)[:, None] * SIZE + column[None, :]
    tl.store(values + target, first, mask=inside & is_value)
    tl.store(values + target + SIZE // 2, second, mask=inside & is_value)


@triton.jit
def gate(
    x,  # [rows, 2 * SIZE]
    out,  # [rows, SIZE]
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out = silu(first half) * second half (Shazeer, arXiv:2002.05202). Grid: rows, pieces of COLUMNS."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < SIZE
    gated = tl.load(x + row * 2 * SIZE + column, mask=within, other=0.0)
    numbers = gated.to(tl.float32)
    activated = (numbers / (1.0 + tl.exp(-numbers))).to(gated.dtype).to(tl.float32)
    up = tl.load(x + row * 2 * SIZE + SIZE + column, mask=within, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + column, (activated * up).to(gated.dtype), mask=within)


@triton.jit(do_not_specialize=["rows"])
def steer(
    hidden,  # [tokens, SIZE], changed in place
    vectors,  # [rows, SIZE] float32
    rows,  # [tokens]
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """hidden += vectors[row], except for tokens with row 0. Grid: tokens, pieces of COLUMNS."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token)
    if row != 0:
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        within = column < SIZE
        number = tl.load(hidden + token * SIZE + column, mask=within, other=0.0)
        added = tl.load(vectors + row * SIZE + column, mask=within, other=0.0)
        steered = number.to(tl.float32) + added.to(number.dtype).to(tl.float32)
        tl.store(hidden + token * SIZE + column, steered.to(number.dtype), mask=within)
