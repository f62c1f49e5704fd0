"""Times attention over the paged cache in each available implementation, for one layer of an 8B Llama."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from benchmarks.gpu.budget import Deadline
from benchmarks.gpu.figures import Figure, Limits, Note
from benchmarks.gpu.limits import median_seconds
from inference.compute.attention import PagedInputs

_HEADS, _KV_HEADS, _SIZE = 32, 8, 128
_PAGE = 16

Compute = Callable[[], object]


def compare(
    device: torch.device, dtype: torch.dtype, limits: Limits, deadline: Deadline, *, small: bool
) -> Iterator[Figure | Note]:
    """Measures decode steps, which the bytes read limit, and a prompt, which its products limit.

    flex_attention comes last, because torch compiles it for each shape. Raises OutOfTimeError.
    """
    # Larger than a GPU's caches, as the keys and values of all layers together are.
    batches, prompt = ([(2, 64), (1, 100)], 32) if small else ([(256, 1024), (16, 8192)], 4096)
    cache = _Cache(max(count * context for count, context in batches), device, dtype)
    cases = [cache.decodes(count, context) for count, context in batches]
    cases.append(cache.prompt(prompt))
    for ways in (_sdpa, _triton, _flex):
        for case in cases:
            deadline.check()
            for name, compute in ways(case):
                if isinstance(compute, str):
                    yield Note(f"{case.what}, {name}: {compute}")
                    continue
                seconds = median_seconds(compute, device, *([1] if small else []))
                yield _figure(case, name, seconds, limits)


@dataclass(frozen=True)
class _Case:
    """Sequences of equal length, and what a device must do at least for them."""

    what: str
    query: torch.Tensor  # [T, heads, size]
    inputs: PagedInputs
    context: int
    num_decodes: int  # 0 for a prompt
    bytes_read: int
    operations: int

    @property
    def gather(self) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        return partial(_gather, self.inputs, self.context)


def _figure(case: _Case, name: str, seconds: float, limits: Limits) -> Figure:
    least = max(case.bytes_read / limits.bytes_per_second, case.operations / limits.flops)
    tokens = len(case.query)
    meaning = "attention of one layer of an 8B Llama; the limit counts keys and values read, or products"
    return Figure("attention", f"{case.what}, {name}", meaning, seconds, tokens / seconds, least / seconds)


class _Cache:
    def __init__(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        self._num_blocks = -(-tokens // _PAGE)
        shape = self._num_blocks * _PAGE, _KV_HEADS, _SIZE
        self._keys = torch.randn(shape, device=device, dtype=dtype)
        self._values = torch.randn(shape, device=device, dtype=dtype)
        self._device = device

    def decodes(self, count: int, context: int) -> _Case:
        inputs = self._inputs([context] * count, [1] * count)
        read = 2 * count * context * _KV_HEADS * _SIZE * self._keys.itemsize
        return _Case(f"{count} x {context}", self._query(count), inputs, context, count, read, 0)

    def prompt(self, length: int) -> _Case:
        products = 2 * _HEADS * _SIZE * length**2  # two products; causal attention sees half of the positions
        inputs = self._inputs([length], [length])
        return _Case(f"prompt of {length}", self._query(length), inputs, length, 0, 0, products)

    def _query(self, tokens: int) -> torch.Tensor:
        return torch.randn(tokens, _HEADS, _SIZE, device=self._device, dtype=self._keys.dtype)

    def _inputs(self, lengths: list[int], counts: list[int]) -> PagedInputs:
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


def _sdpa(case: _Case) -> Iterator[tuple[str, Compute | str]]:
    name = "SDPA over gathered keys"
    if case.num_decodes:
        folded = case.query.view(case.num_decodes, _KV_HEADS, -1, _SIZE)
        yield name, lambda: F.scaled_dot_product_attention(folded, *case.gather())
    else:
        queries = case.query.transpose(0, 1)[None]
        attend = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
        yield name, lambda: attend(queries, *case.gather())


def _triton(case: _Case) -> Iterator[tuple[str, Compute | str]]:
    if case.query.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return
    from inference.backends.cuda.paged_attention import attend_stored

    yield (
        "Tiller's Triton kernel",
        lambda: attend_stored(case.query, case.inputs, case.num_decodes, _SIZE**-0.5, 0, 0.0),
    )


def _gather(inputs: PagedInputs, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of sequences of equal length: [N, heads, length, size] each."""
    within = torch.arange(_PAGE, device=inputs.block_tables.device)
    slots = (inputs.block_tables.long()[:, :, None] * _PAGE + within).flatten(1)[:, :length]
    return inputs.key_cache[slots].transpose(1, 2), inputs.value_cache[slots].transpose(1, 2)


def _flex(case: _Case) -> Iterator[tuple[str, Compute | str]]:
    """Decodes over contiguous keys and values. Paged ones would have to be gathered first."""
    if case.query.device.type != "cuda" or not case.num_decodes:
        return
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(partial(flex_attention, enable_gqa=True), dynamic=False)
    keys, values = (tensor.contiguous() for tensor in case.gather())
    query = case.query[:, :, None]
    name = "flex_attention, not paged"
    try:
        compiled(query, keys, values)
    except Exception as error:
        # Whether flex_attention compiles on this device is part of the result.
        yield name, " ".join(str(error).split())[:200]
        return
    yield name, lambda: compiled(query, keys, values)
