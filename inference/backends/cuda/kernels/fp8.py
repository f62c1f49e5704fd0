"""Triton kernels for linear layers with FP8 weights: numbers in e4m3, the largest is 448, scales in float32.

They round as inference/models/fp8/operations.py does. Blocks are those of DeepSeek-V3 (arXiv:2412.19437,
section 3.3): weights have one scale per 128 x 128, activations one per token and 128 numbers.
"""

import triton
import triton.language as tl


@triton.jit
def _quantize(numbers, scales):
    ratios = tl.clamp(tl.div_rn(numbers, scales), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return ratios.to(tl.float8e4nv)


@triton.jit
def _scale(numbers, least_scale, axis: tl.constexpr):
    """nan if a number is nan. tl.max and tl.maximum ignore nan."""
    is_nan = tl.max((numbers != numbers).to(tl.int32), axis)
    scale = tl.maximum(tl.max(tl.abs(numbers), axis) * (1 / 448), least_scale)
    return tl.where(is_nan > 0, float("nan"), scale)


@triton.jit
def quantize_tokens(
    x,  # [rows, size]
    out,  # [rows, size] FP8
    scales,  # [rows]
    least_scale,
    size,
    SIZE_2: tl.constexpr,
):
    """Grid: rows."""
    row = tl.program_id(0)
    columns = tl.arange(0, SIZE_2)
    within = columns < size
    places = row.to(tl.int64) * size + columns
    numbers = tl.load(x + places, mask=within, other=0.0).to(tl.float32)
    scale = _scale(numbers, least_scale, 0)
    tl.store(scales + row, scale)
    tl.store(out + places, _quantize(numbers, scale), mask=within)


@triton.jit(do_not_specialize=["count"])
def quantize_tensor(
    x,  # [count]
    out,  # [count] FP8
    scale,  # [1]
    count,
    COLUMNS: tl.constexpr,
):
    """Grid: count / COLUMNS."""
    places = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    within = places < count
    numbers = tl.load(x + places, mask=within, other=0.0).to(tl.float32)
    tl.store(out + places, _quantize(numbers, tl.load(scale)), mask=within)


@triton.jit(do_not_specialize=["rows"])
def quantize_groups(
    x,  # [rows, size]
    out,  # [rows, size] FP8
    scales,  # [size / 128, rows]
    least_scale,
    rows,
    size,
    GROUPS: tl.constexpr,
):
    """Grid: rows, groups / GROUPS."""
    row = tl.program_id(0)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    columns = groups[:, None] * 128 + tl.arange(0, 128)[None, :]
    within = columns < size
    places = row.to(tl.int64) * size + columns
    numbers = tl.load(x + places, mask=within, other=0.0).to(tl.float32)
    scale = _scale(numbers, least_scale, 1)
    tl.store(scales + groups.to(tl.int64) * rows + row, scale, mask=groups * 128 < size)
    tl.store(out + places, _quantize(numbers, scale[:, None]), mask=within)


@triton.jit(do_not_specialize=["rows"])
def multiply_blocks(
    x,  # [rows, inputs] FP8
    x_scales,  # [inputs / 128, rows]
    weight,  # [outputs, inputs] FP8
    weight_scales,  # [outputs / 128, inputs / 128]
    out,  # [rows, outputs]
    rows,
    inputs,
    outputs,
    WHOLE: tl.constexpr,  # whether `inputs` is a multiple of 128
    ROWS: tl.constexpr,  # per program
    COLUMNS: tl.constexpr,  # per program; divides 128
):
    """out = x @ weight.T, summed in float32 after each 128 products. Grid: rows / ROWS, outputs / COLUMNS."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, 128)
    row_within, column_within = row < rows, column < outputs
    row_places = row.to(tl.int64) * inputs
    column_places = column.to(tl.int64) * inputs
    blocks = (inputs + 127) // 128
    block_scales = weight_scales + tl.program_id(1) * COLUMNS // 128 * blocks
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(blocks):
        place = block * 128 + inner
        a_within, b_within = row_within[:, None], column_within[None, :]
        if not WHOLE:
            a_within = a_within & (place < inputs)[None, :]
            b_within = b_within & (place < inputs)[:, None]
        a = tl.load(x + row_places[:, None] + place[None, :], mask=a_within, other=0.0)
        b = tl.load(weight + column_places[None, :] + place[:, None], mask=b_within, other=0.0)
        scales = tl.load(x_scales + block * rows + row, mask=row_within, other=0.0)
        scales *= tl.load(block_scales + block)
        total += tl.dot(a, b) * scales[:, None]
    places = row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=row_within[:, None] & column_within[None, :])
