"""Times single kernels of a step on random numbers, in the shapes of a model.

Every layer has its own memory, so that weights, keys and values come from where they come from in a step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.breakdown.limits import Limits
from benchmarks.breakdown.results import Part
from inference.models.causal_lm import CausalLM

BLOCK_SIZE = 16
_GROUP = 32  # weights that share a minimum and a step
_FOUR_BITS = (_GROUP / 2 + 6 * 2 / 2) / _GROUP  # bytes per weight: levels, and three 16-bit numbers per group
_EIGHT_BITS = (_GROUP + 4) / _GROUP


@dataclass(frozen=True)
class Shape:
    """A model of Llama's kind."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int

    @classmethod
    def of(cls, model: CausalLM) -> "Shape":
        config = model.config
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            model.layer_shapes[0].key_size,
            config.vocab_size,
        )


@dataclass(frozen=True)
class Workload:
    """Sequences that each compute `queries` tokens at the end of a context of `context` tokens."""

    name: str
    sequences: int
    context: int
    queries: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.queries

    @property
    def visible(self) -> int:
        """Pairs of a query and a key that it sees."""
        first = self.context - self.queries + 1
        return self.sequences * self.queries * (first + self.context) // 2


def fastest(act: Callable[[], object], least_seconds: float = 0.3) -> float:
    """CPU seconds of this thread for the fastest of at least 3 calls, which take `least_seconds` together."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < least_seconds:
        started = time.thread_time()
        act()
        times.append(time.thread_time() - started)
    return min(times)


@torch.inference_mode()
def measure(shape: Shape, workload: Workload, max_rows: int, limits: Limits) -> list[Part]:
    """The kernels of all steps of the workload. `max_rows`: tokens of a step."""
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head
    rows = min(workload.tokens, max_rows)
    steps = workload.tokens / rows
    parts = [
        _linear("queries, keys, values", shape.layers, shape.hidden, qkv, rows, steps, limits),
        attention(shape, workload, limits),
        _linear(
            "output projection", shape.layers, shape.heads * shape.head, shape.hidden, rows, steps, limits
        ),
        _mlp(shape, rows, steps, limits),
        _norms(shape, rows, steps),
        _output_head(shape, workload.sequences, limits),
    ]
    return [part for part in parts if part.seconds]


def four_bits(outputs: int, inputs: int) -> Any:
    """Packed random weights that are exact in 4 bits."""
    levels = torch.randint(0, 16, (outputs, inputs // _GROUP, _GROUP))
    levels[..., 0], levels[..., 1] = 0, 15
    weight = ((levels - 8) * 2.0**-6).view(outputs, inputs)
    return torch.classes.tiller_cpu.Linear(weight, None)


def _linear(
    name: str, layers: int, inputs: int, outputs: int, rows: int, steps: float, limits: Limits
) -> Part:
    weights = [four_bits(outputs, inputs) for _ in range(layers)]
    x = torch.randn(rows, inputs)
    seconds = fastest(lambda: [torch.ops.tiller_cpu.linear(x, weight) for weight in weights])
    size = layers * inputs * outputs
    operations = 2.0 * size * rows * steps
    return Part(name, seconds * steps, operations, limits.byte_products, size * _FOUR_BITS * steps)


def _mlp(shape: Shape, rows: int, steps: float, limits: Limits) -> Part:
    sizes = (
        (shape.intermediate, shape.hidden),
        (shape.intermediate, shape.hidden),
        (shape.hidden, shape.intermediate),
    )
    layers = [tuple(four_bits(*size) for size in sizes) for _ in range(shape.layers)]
    x = torch.randn(rows, shape.hidden)
    seconds = fastest(lambda: [torch.ops.tiller_cpu.gated_mlp(x, *weights) for weights in layers])
    size = 3 * shape.layers * shape.hidden * shape.intermediate
    operations = 2.0 * size * rows * steps
    return Part(
        "gate, up, down", seconds * steps, operations, limits.byte_products, size * _FOUR_BITS * steps
    )


def _norms(shape: Shape, rows: int, steps: float) -> Part:
    x, weight = torch.randn(rows, shape.hidden), torch.ones(shape.hidden)
    count = 2 * shape.layers + 1
    seconds = fastest(lambda: [torch.ops.tiller_cpu.rms_norm(x, weight, 1e-5) for _ in range(count)], 0.1)
    return Part("norms", seconds * steps)


def _output_head(shape: Shape, rows: int, limits: Limits) -> Part:
    weights = torch.classes.tiller_cpu.Linear(torch.randn(shape.vocabulary, shape.hidden), None)
    x = torch.randn(rows, shape.hidden)
    seconds = fastest(lambda: torch.ops.tiller_cpu.linear(x, weights))
    size = shape.vocabulary * shape.hidden
    return Part("output head", seconds, 2.0 * size * rows, limits.word_products, size * _EIGHT_BITS)


def attention(shape: Shape, workload: Workload, limits: Limits, dtype: torch.dtype = torch.float16) -> Part:
    """Attention of all layers. What it reads at least: the keys and values of each context once."""
    count, queries = workload.sequences, workload.queries
    width = -(-workload.context // BLOCK_SIZE)
    slots = count * width * BLOCK_SIZE + 1
    caches = [
        [torch.randn(slots, shape.kv_heads, shape.head).to(dtype) for _ in range(2)]
        for _ in range(shape.layers)
    ]
    block_tables = torch.randperm(count * width).view(count, width).int()
    positions = torch.arange(workload.context - queries, workload.context).repeat(count)
    sequences = torch.arange(count).repeat_interleave(queries)
    slot_mapping = (
        block_tables.long()[sequences, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    )
    cu_seqlens = torch.arange(count + 1) * queries
    query = torch.randn(1, shape.heads, workload.tokens, shape.head)
    new = torch.randn(1, shape.kv_heads, workload.tokens, shape.head)
    inputs = slot_mapping, block_tables, cu_seqlens, positions, BLOCK_SIZE, shape.head**-0.5, 0, 0.0

    def run() -> None:
        for keys, values in caches:
            torch.ops.tiller_cpu.paged_attention(query, new, new, keys, values, *inputs)

    operations = 4.0 * workload.visible * shape.heads * shape.head * shape.layers
    read = count * workload.context * sum(cache.element_size() for cache in caches[0])
    read *= shape.kv_heads * shape.head * shape.layers
    return Part("attention", fastest(run), operations, limits.float_products, read)
