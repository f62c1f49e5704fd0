"""Steers and reads the output of decoder blocks in each forward pass. Knows no concepts."""

from collections.abc import Callable

import torch

from inference.compute.batch import Batch
from inference.compute.steering import ProjectionBatch, ReadingBatch
from inference.models.causal_lm import CausalLM, LayerHook
from inference.steering.bank import SteeringBank

Steer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""See `steer`."""


def steer(hidden: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor) -> None:
    """hidden [T, hidden_size] += vectors[rows], vectors [num_rows, hidden_size] float32.

    A token with row 0 keeps its values, since that row is zero.
    """
    hidden += vectors[rows].to(hidden.dtype)


def project(hidden: torch.Tensor, vectors: torch.Tensor, projections: ProjectionBatch) -> torch.Tensor:
    """[M, hidden_size] float32: the sum of (read h) * write for each of the M tokens.

    A token's result does not depend on the others, nor on how many terms theirs have.
    """
    chosen = hidden[projections.tokens].float()
    total = torch.zeros_like(chosen)
    for reads, writes in zip(projections.reads.unbind(1), projections.writes.unbind(1), strict=True):
        total += (chosen * vectors[reads]).sum(1, keepdim=True) * vectors[writes]
    return total


def read(
    hidden: torch.Tensor, vectors: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """[R] float32: the products of hidden[tokens] and vectors[rows]."""
    return (hidden[tokens].float() * vectors[rows]).sum(1)


def inject(model: CausalLM, bank: SteeringBank, steer: Steer = steer) -> None:
    """Adds hooks to the model, so that its forward pass steers and reads from now on."""
    for block, vectors in enumerate(bank.vectors):
        model.hook_layer(block, _hook(block, vectors, steer))


def _hook(block: int, vectors: torch.Tensor, steer: Steer) -> LayerHook:  # vectors: [num_rows, hidden_size]
    def act(hidden: torch.Tensor, batch: Batch) -> None:
        steering = batch.steering
        if steering is not None and (steering.blocks is None or block in steering.blocks):
            projected = steering.projections
            change = None if projected is None else project(hidden, vectors, projected)
            steer(hidden, vectors, steering.rows)
            if projected is not None and change is not None:
                hidden.index_add_(0, projected.tokens, change.to(hidden.dtype))
        if batch.readings is not None:
            _read(block, hidden, vectors, batch.readings)

    return act


def _read(block: int, hidden: torch.Tensor, vectors: torch.Tensor, readings: ReadingBatch) -> None:
    if (site := readings.sites.get(block)) is not None:
        readings.projections[block] = read(hidden, vectors, site.tokens, site.rows)
