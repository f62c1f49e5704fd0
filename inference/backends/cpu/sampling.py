"""Sampling in few operations."""

import torch


def weigh(logits: torch.Tensor, temperature: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `inference.compute.sampler.weigh`, in one operation and one pass over memory."""
    results: tuple[torch.Tensor, torch.Tensor] = torch.ops.tiller_cpu.weigh(logits, temperature, piece)
    return results
