"""The sampling operations that are faster on a CPU than torch's general ones."""

import torch

from inference.compute.sampling import operations
from inference.compute.sampling.operations import SamplingOperations


def weigh(logits: torch.Tensor, temperature: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `inference.compute.sampling.operations.weigh`. One C++ operation."""
    results: tuple[torch.Tensor, torch.Tensor] = torch.ops.tiller_cpu.weigh(logits, temperature, piece)
    return results


def find_top(logprobs: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `inference.compute.sampling.operations.find_top`. Reads the values only once if it can."""
    values, ids = logprobs.topk(min(k + 1, logprobs.shape[-1]))
    if not (values[:, 1:] < values[:, :-1]).all():
        return operations.find_top(logprobs, k)
    return values[:, :k], ids[:, :k]


OPERATIONS = SamplingOperations(weigh=weigh, find_top=find_top)
