"""Measures the limits of a device, and computes the least time of a model's steps from them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.figures import Limits
from inference.models.causal_lm import CausalLM

_REPEATS = 20
_WARM_UP = 3


@dataclass(frozen=True)
class Work:
    """The least work for a model's tokens."""

    weight_bytes: int
    """Bytes that every step reads. Without the embedding, because a step reads only a few of its rows."""
    kv_bytes_per_token: int
    flops_per_token: int
    """Matrix products with weights. Without the output head, because a prompt needs it only once."""

    def decode_seconds(self, limits: Limits, sequences: int, context: int) -> float:
        """The least time of a decode step, from the bytes that it reads."""
        read = self.weight_bytes + sequences * context * self.kv_bytes_per_token
        return read / limits.bytes_per_second

    def prefill_seconds(self, limits: Limits, tokens: int) -> float:
        """The least time of a prompt, from the products with weights, without attention."""
        return tokens * self.flops_per_token / limits.flops


def measure(device: torch.device, dtype: torch.dtype, *, copied_bytes: int, size: int) -> Limits:
    """`size`: rows of the square matrices. Inputs are random, because zeros take less power."""
    bytes_per_second = 2 * copied_bytes / _seconds_to_copy(device, copied_bytes)
    if device.type == "cuda":
        # Else cuBLAS puts its workspace into the memory of the copies, which then cannot be freed.
        torch.cuda.empty_cache()
    return Limits(bytes_per_second, 2 * size**3 / _seconds_to_multiply(device, dtype, size))


def _seconds_to_copy(device: torch.device, num_bytes: int) -> float:
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return median_seconds(lambda: target.copy_(source), device)


def _seconds_to_multiply(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return median_seconds(lambda: left @ right, device)


def work_of(model: CausalLM) -> Work:
    network = model._model
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    parameters = {id(parameter): parameter for parameter in network.parameters()}
    matrices = sum(
        p.numel() for p in parameters.values() if p.dim() == 2 and p is not embedding and p is not head
    )
    num_bytes = sum(
        p.numel() * p.element_size() for p in parameters.values() if p is not embedding or p is head
    )
    kv_bytes = sum(shape.num_bytes for shape in model.layer_shapes)
    return Work(num_bytes, kv_bytes, 2 * matrices)


def median_seconds(act: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """The median of `repeats` calls, after some that warm up."""
    times = []
    for _ in range(min(_WARM_UP, repeats - 1) + repeats):
        synchronize(device)
        started = time.perf_counter()
        act()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return sorted(times[-repeats:])[repeats // 2]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
