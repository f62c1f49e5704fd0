"""Differentiates the log probabilities of texts by vectors that steer the model. Uses no KV cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

from inference.models.causal_lm import CausalLM
from inference.scheduling.probe import Derivative

_SCALE = 1024.0
"""Log probabilities are multiplied by it first: float16 would round small derivatives to zero. Dividing
by a power of two is exact."""


@torch.enable_grad()
def differentiate(model: CausalLM, derivative: Derivative) -> None:
    """Computes the derivative. Must not be called in inference mode."""
    vectors = torch.from_numpy(derivative.added.vectors).to(model.device)
    added = vectors.expand(len(derivative.texts), *vectors.shape).clone().requires_grad_()
    with _adding(model, derivative.added.blocks, added):
        logprobs = _mean_logprobs(model, derivative)
    [gradients] = torch.autograd.grad(_SCALE * logprobs.sum(), added)
    derivative.logprobs = logprobs.detach().double().cpu().numpy()
    derivative.gradients = (gradients / _SCALE).cpu().numpy()


@contextmanager
def _adding(model: CausalLM, blocks: tuple[int, ...], added: torch.Tensor) -> Iterator[None]:
    """Adds `added` [N, len(blocks), hidden_size] to the blocks' outputs, at every position but the first."""

    def hook(vectors: torch.Tensor) -> Any:  # [N, hidden_size]
        def add(block: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
            hidden = model.block_output.hidden(output)
            changed = hidden[:, 1:] + vectors[:, None].to(hidden.dtype)
            return model.block_output.replaced(output, torch.cat([hidden[:, :1], changed], 1))

        return add

    handles = [
        model.layers[block].register_forward_hook(hook(vectors))
        for block, vectors in zip(blocks, added.unbind(1), strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mean_logprobs(model: CausalLM, derivative: Derivative) -> torch.Tensor:
    """[N]: for each text the mean log probability of its content tokens."""
    rows = [torch.tensor(prompt + content) for prompt, content in derivative.texts]
    token_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    first = torch.tensor([[len(prompt)] for prompt, _ in derivative.texts])
    end = torch.tensor([[len(row)] for row in rows])
    positions = torch.arange(token_ids.shape[1])
    start = int(first.min())
    content = ((positions >= first) & (positions < end))[:, start:].to(model.device)  # [N, T - start]
    mask = (positions < end).long().to(model.device)
    token_ids = token_ids.to(model.device)
    logits = model.plain_logits(token_ids, mask, keep=token_ids.shape[1] - start + 1)[:, :-1]
    losses = F.cross_entropy(logits[content], token_ids[:, start:][content], reduction="none")
    sums = torch.zeros(content.shape, device=model.device).masked_scatter(content, losses).sum(1)
    return -sums / content.sum(1)
