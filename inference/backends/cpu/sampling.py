"""Turns logits into unnormalised probabilities, as one operation."""

import torch


def weigh(logits: torch.Tensor, temperature: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `inference.compute.sampler.weigh`."""
    results: tuple[torch.Tensor, torch.Tensor] = torch.ops.tiller_cpu.weigh(logits, temperature, piece)
    return results
