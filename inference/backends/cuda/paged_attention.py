"""Attention over the paged KV cache by Triton kernels: one launch for decodes, one for prompt chunks."""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime import driver

from inference.backends.cuda.kernels import paged_attention as kernels
from inference.compute.attention import PagedInputs

_MIN_ROWS = 16  # each side of a matrix that tl.dot multiplies must have this size at least
_PROGRAMS_PER_SM = 2
_MAX_SPLITS = 32
_MIN_SPLIT_KEYS = 128
"""Fewest keys of a part of a split context, unless the whole context is shorter: two tiles, so that the copy
of the second overlaps with the work on the first. FlashInfer uses the same number."""
_WIDE = 128  # heads larger than this get smaller tiles
_LARGE_SHARED = 200 * 1024  # bytes of shared memory per program: GPUs for servers since Hopper


class _Tile(NamedTuple):
    """What a program holds at a time. It must fit into the registers and the shared memory."""

    rows: int  # queries; more if more query heads share a KV head
    keys: int
    num_warps: int
    num_stages: int

    def launch(self, group: int) -> dict[str, int]:
        """The arguments of a launch. `group`: number of query heads that share a KV head."""
        rows = max(self.rows, triton.next_power_of_2(group))
        return {"ROWS": rows, "KEYS": self.keys, "num_warps": self.num_warps, "num_stages": self.num_stages}


class _Tiles(NamedTuple):
    """The tiles for one kind of GPU. Found by compiling: no tile spills more than 32 bytes per thread."""

    chunks: _Tile
    chunks_of_wide_heads: _Tile


_FLOAT32 = _Tile(rows=_MIN_ROWS, keys=16, num_warps=4, num_stages=2)  # without tensor cores
_SINGLE = _Tile(rows=_MIN_ROWS, keys=64, num_warps=4, num_stages=3)
_SINGLE_OF_WIDE_HEADS = _Tile(rows=_MIN_ROWS, keys=32, num_warps=4, num_stages=3)
_SMALL = _Tiles(  # for 99 KB of shared memory
    chunks=_Tile(rows=128, keys=32, num_warps=8, num_stages=3),
    chunks_of_wide_heads=_Tile(rows=64, keys=32, num_warps=8, num_stages=2),
)
_LARGE = _Tiles(
    chunks=_Tile(rows=128, keys=64, num_warps=8, num_stages=3),
    chunks_of_wide_heads=_Tile(rows=128, keys=32, num_warps=8, num_stages=3),
)


class _Gpu(NamedTuple):
    num_sms: int
    shared: int  # bytes of shared memory that a program may use


def attend(
    query: torch.Tensor,  # [1, heads, T, size], its last dimension contiguous
    key: torch.Tensor,  # [1, kv_heads, T, size]
    value: torch.Tensor,  # [1, kv_heads, T, value_size]
    inputs: PagedInputs,
    num_decodes: int,
    scaling: float,
    window: int,
    softcap: float,
) -> torch.Tensor:  # [T, heads, value_size]
    """See `inference.compute.attention.Attend`."""
    inputs.key_cache.index_copy_(0, inputs.slot_mapping, key[0].transpose(0, 1))
    inputs.value_cache.index_copy_(0, inputs.slot_mapping, value[0].transpose(0, 1))
    return attend_stored(query[0].transpose(0, 1), inputs, num_decodes, scaling, window, softcap)


def attend_stored(
    query: torch.Tensor,  # [T, heads, size], its last dimension contiguous
    inputs: PagedInputs,
    num_decodes: int,
    scaling: float,
    window: int,
    softcap: float,
) -> torch.Tensor:  # [T, heads, value_size]
    """Attends to keys and values that are already in the cache.

    Batches of all sizes run the same compiled kernels: `attend_single` for whole contexts, `attend_single`
    and `combine` for contexts in parts, and `attend_chunks`.
    """
    num_tokens, num_heads, size = query.shape
    if any(stride % size for stride in query.stride()[:2]):
        query = query.contiguous()  # the kernels know strides in units of `size`, and read 16 bytes at a time
    kv_heads, value_size = inputs.value_cache.shape[1:]
    out = query.new_empty(num_tokens, num_heads, value_size)
    shared = {
        "query_head_stride": query.stride(1) // size,
        "query_token_stride": query.stride(0) // size,
        "key_stride": inputs.key_cache.stride(0),
        "value_stride": inputs.value_cache.stride(0),
        "block_tables_stride": inputs.block_tables.stride(0),
        "scale": scaling,
        "softcap": softcap,
        "window": window,
        "GROUP": num_heads // kv_heads,
        "KV_HEADS": kv_heads,
        "BLOCK_SIZE": inputs.block_size,
        "SIZE": size,
        "SIZE_2": triton.next_power_of_2(max(_MIN_ROWS, size)),
        "VALUE_SIZE": value_size,
        "VALUE_SIZE_2": triton.next_power_of_2(max(_MIN_ROWS, value_size)),
        "HAS_SOFTCAP": softcap > 0,
        "HAS_WINDOW": window > 0,
        "PRECISION": "ieee",  # float32 products must not be rounded to tf32
    }
    if num_decodes:
        _launch_single(query, inputs, out[:num_decodes], shared)
    if num_decodes < len(inputs.block_tables):
        _launch_chunks(query, inputs, out, num_decodes, shared)
    return out


def _launch_single(
    query: torch.Tensor,
    inputs: PagedInputs,
    out: torch.Tensor,  # [sequences, heads, value_size]
    shared: dict[str, Any],
) -> None:
    num_sequences, num_heads, value_size = out.shape
    kv_heads = inputs.key_cache.shape[1]
    splits = _num_splits(num_sequences * kv_heads, query.device)
    part_sums, part_weights, part_largest = out, out, out  # placeholders: unused if splits is 1
    if splits > 1:
        part_sums = out.new_empty(num_sequences, num_heads, splits, value_size, dtype=torch.float32)
        part_weights, part_largest = (part_sums.new_empty(part_sums.shape[:-1]) for _ in range(2))
    launch = _single_tile(query, value_size).launch(shared["GROUP"])
    kernels.attend_single[num_sequences, kv_heads, splits](
        query,
        inputs.key_cache,
        inputs.value_cache,
        inputs.block_tables,
        inputs.positions,
        out,
        part_sums,
        part_weights,
        part_largest,
        SPLIT=splits > 1,
        MIN_TILES=_MIN_SPLIT_KEYS // launch["KEYS"],
        **launch,
        **shared,
    )
    if splits > 1:
        kernels.combine[(num_sequences * num_heads,)](
            part_sums,
            part_weights,
            part_largest,
            out,
            splits,
            MAX_SPLITS=_MAX_SPLITS,
            VALUE_SIZE=value_size,
            VALUE_SIZE_2=shared["VALUE_SIZE_2"],
        )


def _launch_chunks(
    query: torch.Tensor,
    inputs: PagedInputs,
    out: torch.Tensor,  # [T, heads, value_size]
    first: int,
    shared: dict[str, Any],
) -> None:
    """Attends for the sequences from `first` on. Each sequence before them has exactly one token."""
    num_sequences = len(inputs.block_tables)
    kv_heads = inputs.key_cache.shape[1]
    launch = _chunk_tile(query, out.shape[-1]).launch(shared["GROUP"])
    tokens = launch["ROWS"] // shared["GROUP"]
    # One extra tile per sequence, since a sequence's last tile may be partly filled.
    tiles = (len(out) - first) // tokens + num_sequences - first
    kernels.attend_chunks[(tiles * kv_heads,)](
        query,
        inputs.key_cache,
        inputs.value_cache,
        inputs.block_tables,
        inputs.cu_seqlens,
        inputs.positions,
        out,
        first,
        num_sequences,
        TOKENS=tokens,
        **launch,
        **shared,
    )


def _single_tile(query: torch.Tensor, value_size: int) -> _Tile:
    if query.dtype == torch.float32:
        return _FLOAT32
    return _SINGLE_OF_WIDE_HEADS if max(query.shape[-1], value_size) > _WIDE else _SINGLE


def _chunk_tile(query: torch.Tensor, value_size: int) -> _Tile:
    if query.dtype == torch.float32:
        return _FLOAT32
    tiles = _LARGE if _gpu(query.device).shared >= _LARGE_SHARED else _SMALL
    return tiles.chunks_of_wide_heads if max(query.shape[-1], value_size) > _WIDE else tiles.chunks


def _num_splits(num_programs: int, device: torch.device) -> int:
    """Into how many parts each context is split, so that all multiprocessors have work: a power of 2."""
    wanted = _PROGRAMS_PER_SM * _gpu(device).num_sms // num_programs
    return min(_MAX_SPLITS, 1 << max(0, wanted.bit_length() - 1))


@cache
def _gpu(device: torch.device) -> _Gpu:
    if device.type != "cuda":  # Triton's interpreter
        return _Gpu(num_sms=8, shared=99 * 1024)
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = driver.active.utils.get_device_properties(index)
    return _Gpu(properties["multiprocessor_count"], properties["max_shared_mem"])
