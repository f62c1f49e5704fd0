"""Whether a replacement computes what it replaces: a module of a known name may do something else."""

import torch

_TOLERANCE = 1e-3  # relative to the largest number; what is something else differs by much more


def are_alike(expected: torch.Tensor, ours: torch.Tensor) -> bool:
    return bool((expected - ours).abs().max() <= _TOLERANCE * expected.abs().max())


def random(*shape: int) -> torch.Tensor:
    """Normally distributed; the same every time, as is then what depends on it."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
