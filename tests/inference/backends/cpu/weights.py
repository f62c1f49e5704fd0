"""Weights like those of models that were published in 4 bits."""

import torch


def in_four_bits(weight: torch.Tensor) -> torch.Tensor:
    """Rounds weights [out, in] so that each 32 of a row lie on 16 even steps, as in GGUF's Q4_1.

    The minimum and the step of each 32 are float16 numbers. Layers without 32 in a row keep their weights, as
    in such files.
    """
    if weight.shape[1] % 32:
        return weight
    groups = weight.view(len(weight), -1, 32)
    least = groups.amin(-1, keepdim=True).half().float()
    steps = ((groups.amax(-1, keepdim=True) - least) / 15).half().float()
    levels = ((groups - least) / steps).round().clamp(0, 15)
    # Every group uses the levels 0 and 15, as in such files, where the extremes define the step.
    levels[..., 0], levels[..., 1] = 0, 15
    return (least + steps * levels).view_as(weight)
