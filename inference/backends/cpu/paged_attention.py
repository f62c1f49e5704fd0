"""Attention in the paged cache, in one operation."""

import torch

from inference.compute.attention import PagedInputs


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: PagedInputs,
    num_decodes: int,  # noqa: ARG001 - which are told by their starts
    scaling: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """As `inference.compute.attention.Attend` says, in float32."""
    attended: torch.Tensor = torch.ops.tiller_cpu.paged_attention(
        query, key, value, *inputs, scaling, window, softcap
    )
    return attended
