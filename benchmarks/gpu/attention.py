"""Times attention over the paged cache in each available back end, for one layer of an 8B Llama."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from benchmarks.gpu.limits import Limits, median_seconds
from benchmarks.gpu.speed import Figure
from inference.compute.attention import PagedInputs

_HEADS, _KV_HEADS, _SIZE = 32, 8, 128
_PAGE = 16

Compute = Callable[[], object]


def compare(device: torch.device, dtype: torch.dtype, limits: Limits, *, small: bool) -> Iterator[Figure]:
    """Measures decode steps, which the bytes read limit, and a prompt, which its products limit."""
    # Larger than a GPU's caches, as the keys and values of all layers together are.
    batches, prompt = ([(2, 64), (1, 100)], 32) if small else ([(256, 1024), (16, 8192)], 4096)
    cache = _Cache(max(count * context for count, context in batches), device, dtype)
    for count, context in batches:
        query = torch.randn(count, _HEADS, _SIZE, device=device, dtype=dtype)
        inputs = cache.inputs([context] * count, [1] * count)
        read = 2 * count * context * _KV_HEADS * _SIZE * dtype.itemsize
        for name, compute in _single(query, inputs, context):
            seconds = median_seconds(compute, device)
            yield _figure(f"{count} x {context}, {name}", seconds, count, read / limits.bytes_per_second)
    query = torch.randn(prompt, _HEADS, _SIZE, device=device, dtype=dtype)
    inputs = cache.inputs([prompt], [prompt])
    products = 2 * _HEADS * _SIZE * prompt**2  # two products; causal attention sees half of the positions
    for name, compute in _prompt(query, inputs):
        seconds = median_seconds(compute, device)
        yield _figure(f"prompt of {prompt}, {name}", seconds, prompt, products / limits.flops)


def _figure(what: str, seconds: float, tokens: int, least: float) -> Figure:
    return Figure("attention", what, seconds, tokens / seconds, least / seconds)


class _Cache:
    def __init__(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self._num_blocks = -(-tokens // _PAGE)
        shape = self._num_blocks * _PAGE, _KV_HEADS, _SIZE
        self._keys = torch.randn(shape, device=device, dtype=dtype)
        self._values = torch.randn(shape, device=device, dtype=dtype)
        self._device = device

    def inputs(self, lengths: list[int], counts: list[int]) -> PagedInputs:
        """Inputs of sequences with `lengths` tokens, whose last `counts` tokens are in the batch.

        The KV cache blocks are in random order.
        """
        width = -(-max(lengths) // _PAGE)
        shuffled = torch.randperm(self._num_blocks, device=self._device)[: len(lengths) * width]
        positions = [torch.arange(n - c, n) for n, c in zip(lengths, counts, strict=True)]
        starts = torch.tensor([0, *counts], device=self._device).cumsum(0)
        blocks = shuffled.view(len(lengths), width).int()
        slots = torch.zeros(sum(counts), dtype=torch.int64, device=self._device)
        together = torch.cat(positions).to(self._device)
        return PagedInputs(self._keys, self._values, slots, blocks, starts, together, _PAGE)


def _single(query: torch.Tensor, inputs: PagedInputs, context: int) -> Iterator[tuple[str, Compute]]:
    gather = partial(_gather, inputs, context)
    folded = query.view(len(query), _KV_HEADS, -1, _SIZE)
    yield "SDPA over gathered keys", lambda: F.scaled_dot_product_attention(folded, *gather())
    yield from _triton(query, inputs, num_decodes=len(query))
    yield from _flex(query[:, :, None], *gather())


def _prompt(query: torch.Tensor, inputs: PagedInputs) -> Iterator[tuple[str, Compute]]:
    gather = partial(_gather, inputs, len(query))
    queries = query.transpose(0, 1)[None]
    attend = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    yield "SDPA over gathered keys", lambda: attend(queries, *gather())
    yield from _triton(query, inputs, num_decodes=0)


def _gather(inputs: PagedInputs, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of sequences of equal length: [N, heads, length, size] each."""
    within = torch.arange(_PAGE, device=inputs.block_tables.device)
    slots = (inputs.block_tables.long()[:, :, None] * _PAGE + within).flatten(1)[:, :length]
    return inputs.key_cache[slots].transpose(1, 2), inputs.value_cache[slots].transpose(1, 2)


def _triton(query: torch.Tensor, inputs: PagedInputs, num_decodes: int) -> Iterator[tuple[str, Compute]]:
    if query.device.type != "cuda":
        return
    from inference.backends.cuda.paged_attention import attend_stored

    yield "our Triton kernel", lambda: attend_stored(query, inputs, num_decodes, _SIZE**-0.5, 0, 0.0)


def _flex(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Iterator[tuple[str, Compute]]:
    """Over contiguous keys and values. Paged ones would have to be gathered first."""
    if query.device.type != "cuda":
        return
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(partial(flex_attention, enable_gqa=True), dynamic=False)
    keys, values = keys.contiguous(), values.contiguous()
    try:
        compiled(query, keys, values)
    except Exception as error:
        # Whether flex_attention compiles on this device is part of the result.
        print(f"flex_attention: {' '.join(str(error).split())[:200]}", flush=True)
        return
    yield "flex_attention, not paged", lambda: compiled(query, keys, values)
