"""Attention over the paged KV cache, as one operation."""

import torch

from inference.compute.attention import PagedInputs


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: PagedInputs,
    num_decodes: int,  # noqa: ARG001 - the operation reads cu_seqlens instead
    scaling: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """See `inference.compute.attention.Attend`. All tensors are float32; the cache may be float16."""
    attended: torch.Tensor = torch.ops.tiller_cpu.paged_attention(
        query, key, value, *inputs, scaling, window, softcap
    )
    return attended
