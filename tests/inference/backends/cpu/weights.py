"""Weights such as models have that come in 4 bits."""

import torch


def in_four_bits(weight: torch.Tensor) -> torch.Tensor:
    """The nearest weights [out, in] of which each 32 lie on 16 even steps of float16 (GGUF's Q4_1)."""
    groups = weight.view(len(weight), -1, 32)
    least = groups.amin(-1, keepdim=True).half().float()
    steps = ((groups.amax(-1, keepdim=True) - least) / 15).half().float()
    levels = ((groups - least) / steps).round().clamp(0, 15)
    # Both ends are taken, as in files of this kind, where they define the steps.
    levels[..., 0], levels[..., 1] = 0, 15
    return (least + steps * levels).view_as(weight)
