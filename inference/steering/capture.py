"""Stores a step's results in its probes: sums of hidden states, and log probabilities."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from inference.compute.batch import Batch
from inference.models.causal_lm import CausalLM, LayerHook
from inference.scheduling.probe import ProbeSpan


@contextmanager
def capturing(model: CausalLM, spans: list[ProbeSpan]) -> Iterator[None]:
    """Inside the context, adds decoder block outputs to the probes that capture. Undoes this on an error."""
    captured = [span for span in spans if span.probe.captures]
    for span in captured:
        if span.starts_content:
            span.probe.clear(len(model.layers), model.hidden_size)
    captured = [span for span in captured if span.captured_tokens.start < span.captured_tokens.stop]
    before = [(span.probe, span.probe.hidden_sum.copy(), span.probe.norm_sum.copy()) for span in captured]
    with ExitStack() as stack:
        if captured:
            for layer in range(len(model.layers)):
                stack.callback(model.hook_layer(layer, _add_up(captured, layer)).remove)
        try:
            yield
        except BaseException:
            for probe, hidden_sum, norm_sum in before:
                probe.hidden_sum, probe.norm_sum = hidden_sum, norm_sum
            raise


def _add_up(spans: list[ProbeSpan], layer: int) -> LayerHook:
    def add_up(hidden: torch.Tensor, batch: Batch) -> None:  # noqa: ARG001
        for span in spans:
            content = hidden[span.captured_tokens].double()
            span.probe.hidden_sum[layer] += content.sum(0).cpu().numpy()
            span.probe.norm_sum[layer] += float(content.norm(dim=1).sum())

    return add_up


def score(spans: list[ProbeSpan], logits: torch.Tensor) -> None:
    """Stores the log probabilities of the scored content in the probes.

    `logits`: [P, vocab_size] float32 at the spans' scored tokens, one span after the other.
    """
    scored = [(span.probe, span.scored_content) for span in spans]
    targets = [token for probe, content in scored for token in probe.content_token_ids[content]]
    index = torch.tensor(targets, dtype=torch.long, device=logits.device)[:, None]
    logprobs = logits.gather(1, index)[:, 0] - logits.logsumexp(1)
    parts = np.split(logprobs.double().cpu().numpy(), np.cumsum([len(s.scored_tokens) for s in spans])[:-1])
    for (probe, content), part in zip(scored, parts, strict=True):
        probe.logprobs[content] = part
