"""Compares a replacement with the original, since a module with a known name may compute something else."""

from collections.abc import Callable
from typing import Any

import torch

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest error, relative to the largest expected number. Rounding errors stay below it; the errors of a
different computation are much larger."""


def are_close(expected: torch.Tensor, actual: torch.Tensor) -> bool:
    """Whether both tensors are equal except for rounding errors."""
    return bool((expected - actual).abs().max() <= _TOLERANCE[expected.dtype] * expected.abs().max())


def compute_the_same(original: Callable[[], torch.Tensor], other: Callable[[], torch.Tensor]) -> bool:
    """Whether both give equal tensors except for rounding errors. Not if one of them raises an error.

    A module with a known name may need other arguments, or give something else than a tensor.
    """
    try:
        return are_close(original(), other())
    except Exception:  # any kind: the code is the model's own
        return False


def random(*shape: int) -> torch.Tensor:
    """Normally distributed numbers on the CPU, the same in every call, so that a trial is reproducible."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


def has_untestable_options(attention: Any) -> bool:
    """Whether the attention layer has a softcap, scales that grow with the position (Llama 4, Ministral 3),
    or a sliding window that it does not store as an attribute.

    A trial cannot detect them: its contexts are too short and its scores too small.
    """
    if getattr(attention.config, "attn_logit_softcapping", None):
        return True
    rotary = getattr(attention.config, "rope_parameters", None) or {}
    if rotary.get("llama_4_scaling_beta") or getattr(attention.config, "attn_temperature_tuning", None):
        return True
    # Without the attribute, only the module's code knows which layers have the window.
    return bool(getattr(attention.config, "sliding_window", None)) and not hasattr(
        attention, "sliding_window"
    )
