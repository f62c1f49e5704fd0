"""Adds what a batch asks for to the output of the steered blocks. Knows no concepts."""

import torch

from inference.batch import Batch
from inference.model import BlockHook, CausalLM
from inference.steering.bank import SteeringBank


def inject(model: CausalLM, bank: SteeringBank) -> None:
    """From now on, the model's forward pass steers.

    A token whose row is zero keeps its values bit for bit.
    """
    for vectors, block in zip(bank.vectors, bank.blocks, strict=True):
        model.hook_block(block, _add(vectors))


def _add(vectors: torch.Tensor) -> BlockHook:  # vectors: [num_rows, hidden_size]
    def add(hidden: torch.Tensor, batch: Batch) -> None:
        if batch.steering is not None:
            added = batch.steering.scales * vectors[batch.steering.rows]  # [T, hidden_size] float32
            hidden += added.to(hidden.dtype)

    return add
