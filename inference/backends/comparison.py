"""Whether a replacement computes what it replaces: a module of a known name may do something else."""

from typing import Any

import torch

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Relative to the largest number: beyond rounding; what is something else differs by much more."""


def are_close(expected: torch.Tensor, ours: torch.Tensor) -> bool:
    return bool((expected - ours).abs().max() <= _TOLERANCE[expected.dtype] * expected.abs().max())


def random(*shape: int) -> torch.Tensor:
    """Normally distributed; the same every time, as is then what depends on it."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


def has_untestable_options(attention: Any) -> bool:
    """A wide window, or a cap on large scores: a trial with a few small numbers says nothing of them."""
    if getattr(attention.config, "attn_logit_softcapping", None):
        return True
    # Which layers have the window is then known to the module's code alone.
    return bool(getattr(attention.config, "sliding_window", None)) and not hasattr(
        attention, "sliding_window"
    )
