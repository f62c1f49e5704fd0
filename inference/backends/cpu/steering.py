"""Steering and readings in one C++ operation each. torch's operations would start OpenMP's threads."""

import torch

from inference.compute.steering import ProjectionBatch
from inference.steering import injection
from inference.steering.injection import SteeringOperations


def steer(hidden: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor) -> None:
    """See `injection.steer`."""
    if _fits(hidden):
        torch.ops.tiller_cpu.steer(hidden, vectors, rows)
    else:
        injection.steer(hidden, vectors, rows)


def project(hidden: torch.Tensor, vectors: torch.Tensor, projections: ProjectionBatch) -> None:
    """See `injection.project`."""
    if _fits(hidden):
        torch.ops.tiller_cpu.project(
            hidden, vectors, projections.tokens, projections.reads, projections.writes
        )
    else:
        injection.project(hidden, vectors, projections)


def read(
    hidden: torch.Tensor, vectors: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """See `injection.read`."""
    if not _fits(hidden):
        return injection.read(hidden, vectors, tokens, rows)
    products: torch.Tensor = torch.ops.tiller_cpu.read(hidden, vectors, tokens, rows)
    return products


def _fits(hidden: torch.Tensor) -> bool:
    return hidden.dtype == torch.float32 and hidden.stride(1) == 1


OPERATIONS = SteeringOperations(steer, project, read)
