"""Attention in the paged cache, in one operation."""

import torch

from inference.compute.attention import Places


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    places: Places,
    num_single: int,  # noqa: ARG001 - which are told by their starts
    scaling: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """As `inference.compute.attention.Attend` says, in float32."""
    attended: torch.Tensor = torch.ops.tiller_cpu.paged_attention(
        query, key, value, *places, scaling, window, softcap
    )
    return attended
