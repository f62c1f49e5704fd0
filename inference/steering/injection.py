"""Adds a batch's steering vectors to the output of the steered decoder blocks. Knows no concepts."""

from collections.abc import Callable

import torch

from inference.compute.batch import Batch
from inference.models.causal_lm import CausalLM, LayerHook
from inference.steering.bank import SteeringBank

Steer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""See `steer`."""


def steer(hidden: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor, scales: torch.Tensor) -> None:
    """hidden [T, hidden_size] += scales [T, 1] * vectors[rows], vectors [num_rows, hidden_size] float32.

    A token with row 0 keeps its values bit for bit, since that row is zero.
    """
    hidden += (scales * vectors[rows]).to(hidden.dtype)


def inject(model: CausalLM, bank: SteeringBank, steer: Steer = steer) -> None:
    """Adds hooks to the model, so that its forward pass steers from now on."""
    for vectors, block in zip(bank.vectors, bank.blocks, strict=True):
        model.hook_layer(block, _add(vectors, steer))


def _add(vectors: torch.Tensor, steer: Steer) -> LayerHook:  # vectors: [num_rows, hidden_size]
    def add(hidden: torch.Tensor, batch: Batch) -> None:
        if batch.steering is not None:
            steer(hidden, vectors, batch.steering.rows, batch.steering.scales)

    return add
