"""Measures a step's probes: sums of hidden states, and log probabilities."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import numpy as np
import torch

from inference.compute.batch import Batch
from inference.compute.transfer import upload
from inference.models.causal_lm import CausalLM, LayerHook
from inference.scheduling.probe import ProbeSpan


class ProbeResults:
    """The results of a step's probe spans. They stay on the device until `store` copies them in one go.

    A step that fails is never stored, so it leaves its probes unchanged.
    """

    def __init__(
        self, spans: list[ProbeSpan], num_layers: int, hidden_size: int, device: torch.device
    ) -> None:
        self._spans = spans
        self._captured = [
            span
            for span in spans
            if span.probe.captures and span.captured_tokens.start < span.captured_tokens.stop
        ]
        shape = num_layers, len(self._captured)
        self._hidden_sums = torch.empty(*shape, hidden_size, dtype=torch.float64, device=device)
        self._norm_sums = torch.empty(*shape, dtype=torch.float64, device=device)
        self._logprobs = torch.empty(0, dtype=torch.float64, device=device)

    @classmethod
    @contextmanager
    def capturing(cls, model: CausalLM, spans: list[ProbeSpan]) -> Iterator[Self]:
        """Inside the context, a forward pass adds up the hidden states of the probes that capture."""
        results = cls(spans, len(model.layers), model.hidden_size, model.device)
        with ExitStack() as stack:
            if results._captured:
                for layer in range(len(model.layers)):
                    stack.callback(model.hook_layer(layer, results._add_up(layer)).remove)
            yield results

    def score(self, logits: torch.Tensor) -> None:
        """Computes the log probabilities of the scored content.

        `logits`: [P, vocab_size] float32 at the spans' scored tokens, one span after the other. P may be 0.
        """
        targets = [
            token for span in self._spans for token in span.probe.content_token_ids[span.scored_content]
        ]
        index = upload({"targets": np.array(targets, np.int64)[:, None]}, logits.device)["targets"]
        self._logprobs = (logits.gather(1, index)[:, 0] - logits.logsumexp(1)).double()

    def store(self) -> None:
        """Waits for the step, and adds its results to the probes."""
        hidden_sums, norm_sums = self._hidden_sums.cpu().numpy(), self._norm_sums.cpu().numpy()
        logprobs = self._logprobs.cpu().numpy()
        for span in self._spans:
            if span.probe.captures and span.starts_content:
                span.probe.clear(*hidden_sums.shape[::2])
        for i, span in enumerate(self._captured):
            span.probe.hidden_sum += hidden_sums[:, i]
            span.probe.norm_sum += norm_sums[:, i]
        ends = np.cumsum([len(span.scored_tokens) for span in self._spans])
        for span, part in zip(self._spans, np.split(logprobs, ends[:-1]), strict=True):
            span.probe.logprobs[span.scored_content] = part

    def _add_up(self, layer: int) -> LayerHook:
        def add_up(hidden: torch.Tensor, batch: Batch) -> None:  # noqa: ARG001
            for i, span in enumerate(self._captured):
                content = hidden[span.captured_tokens]
                torch.sum(content, 0, dtype=torch.float64, out=self._hidden_sums[layer, i])
                norms = torch.linalg.vector_norm(content, dim=1, dtype=torch.float64)
                torch.sum(norms, 0, out=self._norm_sums[layer, i])

        return add_up
