"""Steers and reads the output of decoder blocks in each forward pass. Knows no concepts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from inference.compute.batch import Batch
from inference.compute.steering import ProjectionBatch
from inference.models.causal_lm import CausalLM, LayerHook
from inference.steering.bank import SteeringBank

Steer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
Project = Callable[[torch.Tensor, torch.Tensor, ProjectionBatch], None]
Read = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def steer(hidden: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor) -> None:
    """hidden [T, hidden_size] += vectors[rows], vectors [num_rows, hidden_size] float32.

    A token with row 0 keeps its values, since that row is zero.
    """
    hidden += vectors[rows].to(hidden.dtype)


def project(hidden: torch.Tensor, vectors: torch.Tensor, projections: ProjectionBatch) -> None:
    """Adds the sum of (read h) * write to each of the M tokens. Computes in float32.

    A token's result does not depend on the others, nor on how many terms theirs have.
    """
    chosen = hidden[projections.tokens].float()
    total = torch.zeros_like(chosen)
    for reads, writes in zip(projections.reads.unbind(1), projections.writes.unbind(1), strict=True):
        total += (chosen * vectors[reads]).sum(1, keepdim=True) * vectors[writes]
    hidden.index_add_(0, projections.tokens, total.to(hidden.dtype))


def read(
    hidden: torch.Tensor, vectors: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """[R] float32: the products of hidden[tokens] and vectors[rows]."""
    return (hidden[tokens].float() * vectors[rows]).sum(1)


@dataclass(frozen=True)
class SteeringOperations:
    """See the functions of these names. A back end may replace each one."""

    steer: Steer = steer
    project: Project = project
    read: Read = read


def inject(model: CausalLM, bank: SteeringBank, operations: SteeringOperations) -> None:
    """Adds hooks to the model, so that its forward pass steers and reads from now on."""
    for block, vectors in enumerate(bank.vectors):
        model.hook_layer(block, _hook(block, vectors, operations))


def _hook(block: int, vectors: torch.Tensor, operations: SteeringOperations) -> LayerHook:
    """`vectors` [num_rows, hidden_size]: the bank's rows for this block."""

    def act(hidden: torch.Tensor, batch: Batch) -> None:
        steering = batch.steering
        if steering is not None and (steering.blocks is None or block in steering.blocks):
            if steering.projections is not None:  # of the hidden states before anything is added
                operations.project(hidden, vectors, steering.projections)
            operations.steer(hidden, vectors, steering.rows)
        site = None if batch.readings is None else batch.readings.sites.get(block)
        if batch.readings is not None and site is not None:
            batch.readings.projections[block] = operations.read(hidden, vectors, site.tokens, site.rows)

    return act
