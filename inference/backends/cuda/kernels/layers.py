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
def rotate_and_store(
    qkv,  # [tokens, HEADS + 2 * KV_HEADS, SIZE]; the queries are rotated in place
    cosines,  # [tokens, SIZE]
    sines,
    keys,  # [slots, KV_HEADS, SIZE]
    values,
    slots,  # [tokens]
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF_2: tl.constexpr,  # SIZE // 2 rounded up to a power of 2
):
    """Rotates queries and keys by their positions (Su et al., arXiv:2104.09864). Stores keys and values.

    Grid: tokens, HEADS + 2 * KV_HEADS.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, HALF_2)
    within = column < SIZE // 2
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * SIZE
    first = tl.load(source + column, mask=within, other=0.0)
    second = tl.load(source + SIZE // 2 + column, mask=within, other=0.0)
    target = source
    if head >= HEADS:
        slot = tl.load(slots + token)
        if head < HEADS + KV_HEADS:
            target = keys + (slot * KV_HEADS + head - HEADS) * SIZE
        else:
            target = values + (slot * KV_HEADS + head - HEADS - KV_HEADS) * SIZE
    if head < HEADS + KV_HEADS:
        angle = token * SIZE + column
        x, y = first.to(tl.float32), second.to(tl.float32)
        cosine = tl.load(cosines + angle, mask=within, other=0.0).to(tl.float32)
        sine = tl.load(sines + angle, mask=within, other=0.0).to(tl.float32)
        cosine_2 = tl.load(cosines + angle + SIZE // 2, mask=within, other=0.0).to(tl.float32)
        sine_2 = tl.load(sines + angle + SIZE // 2, mask=within, other=0.0).to(tl.float32)
        first = (x * cosine - y * sine).to(first.dtype)
        second = (y * cosine_2 + x * sine_2).to(second.dtype)
    tl.store(target + column, first, mask=within)
    tl.store(target + SIZE // 2 + column, second, mask=within)


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


@triton.jit
def steer(
    hidden,  # [tokens, SIZE], changed in place
    vectors,  # [rows, SIZE] float32
    rows,  # [tokens]
    scales,  # [tokens] float32
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """hidden += scale * vectors[row], except for tokens with row 0. Grid: tokens, pieces of COLUMNS."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + token)
    if row != 0:
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        within = column < SIZE
        number = tl.load(hidden + token * SIZE + column, mask=within, other=0.0)
        added = tl.load(scales + token) * tl.load(vectors + row * SIZE + column, mask=within, other=0.0)
        steered = number.to(tl.float32) + added.to(number.dtype).to(tl.float32)
        tl.store(hidden + token * SIZE + column, steered.to(number.dtype), mask=within)
