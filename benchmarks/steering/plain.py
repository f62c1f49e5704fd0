"""The embedded model in plain transformers, steered by the `steering-vectors` package. Knows no engine.

So an independent implementation of steering measures the server's concepts, and the other ways to steer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from steering_vectors import SteeringVector
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

_BATCH = 16

Vectors = dict[int, torch.Tensor]
"""By decoder block: a vector [hidden_size] to add to its output."""


@dataclass(frozen=True)
class _Batch:
    """B sequences of token ids, padded on the right to T tokens."""

    ids: torch.Tensor  # [B, T]
    mask: torch.Tensor  # [B, T], False for padding

    @classmethod
    def of(cls, rows: list[list[int]]) -> "_Batch":
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        return cls(ids, torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows]))


class PlainModel:
    def __init__(self, directory: Path, prompt: str) -> None:
        """`prompt`: the user message before every text."""
        self.model = AutoModelForCausalLM.from_pretrained(directory).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self._prefix = self._render(prompt)

    @property
    def num_blocks(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @contextmanager
    def steered(self, vectors: Vectors) -> Iterator[None]:
        """Adds a vector to each decoder block's output, at every position but the first."""
        with SteeringVector(vectors).apply(self.model, min_token_index=1):
            yield

    @torch.inference_mode()
    def logprobs(self, texts: Sequence[str]) -> torch.Tensor:
        """[len(texts)]: each text's log probability per token after the model's prompt, in nats."""
        return torch.cat([self._score(batch) for batch in self._batches(texts)])

    @torch.inference_mode()
    def answer_logprobs(self, prompt: str, answers: Sequence[str]) -> torch.Tensor:
        """[len(answers)]: the same after a user message `prompt`. 0 for an empty answer."""
        scores = torch.zeros(len(answers))
        rows = [self._encode(answer) for answer in answers]
        full = [number for number, row in enumerate(rows) if row]
        for start in range(0, len(full), _BATCH):
            chosen = full[start : start + _BATCH]
            scores[chosen] = self._score_after(self._render(prompt), [rows[number] for number in chosen])
        return scores

    @torch.inference_mode()
    def distributions(self, text: str) -> torch.Tensor:
        """[T, vocab_size]: the log probabilities that predict each token of a text."""
        [batch] = self._batches([text])
        return self._predict(batch)[0]

    @torch.inference_mode()
    def mean_hidden(self, texts: Sequence[str]) -> torch.Tensor:
        """[len(texts), num_blocks - 1, hidden_size]: each block's output, averaged over a text's tokens.

        Without the last block, because transformers gives its output normalized only.
        """
        means = []
        for batch in self._batches(texts):
            output = self.model.model(
                batch.ids, attention_mask=batch.mask.long(), use_cache=False, output_hidden_states=True
            )
            kept = batch.mask[:, len(self._prefix) :, None].float()
            states = [state[:, len(self._prefix) :] for state in output.hidden_states[1:-1]]
            means.append(torch.stack([(state * kept).sum(1) / kept.sum(1) for state in states], 1))
        return torch.cat(means)

    def _render(self, prompt: str) -> list[int]:
        """The token ids of a user message, up to the assistant's words."""
        messages = [{"role": "user", "content": prompt}]
        return self._encode(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _batches(self, texts: Sequence[str]) -> list[_Batch]:
        rows = [self._prefix + self._encode(text) for text in texts]
        return [_Batch.of(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]

    def _predict(self, batch: _Batch) -> torch.Tensor:
        """[B, T - len(prefix), vocab_size]: the log probabilities that predict the texts' tokens."""
        kept = batch.ids.shape[1] - len(self._prefix) + 1
        mask = batch.mask.long()
        logits = self.model(batch.ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
        return logits[:, :-1].log_softmax(-1)

    def _score(self, batch: _Batch) -> torch.Tensor:
        start = len(self._prefix)
        return _mean_chosen(self._predict(batch), batch.ids[:, start:], batch.mask[:, start:])

    def _score_after(self, prompt: list[int], rows: list[list[int]]) -> torch.Tensor:
        """Computes the prompt only once, and logits only where a token of a row follows."""
        batch = _Batch.of(rows)
        cache = DynamicCache()
        first = self.model.model(torch.tensor([prompt]), past_key_values=cache).last_hidden_state[:, -1:]
        cache.batch_repeat_interleave(len(rows))
        mask = torch.cat([torch.ones(len(rows), len(prompt), dtype=torch.long), batch.mask.long()], 1)
        rest = self.model.model(batch.ids, past_key_values=cache, attention_mask=mask).last_hidden_state
        hidden = torch.cat([first.expand(len(rows), -1, -1), rest[:, :-1]], 1)
        logits = self.model.lm_head(hidden[batch.mask])  # [number of tokens, vocab_size]
        chosen = logits.gather(-1, batch.ids[batch.mask][:, None])[:, 0]
        logprobs = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, chosen - logits.logsumexp(-1))
        return logprobs.sum(1) / batch.mask.sum(1)


def _mean_chosen(logprobs: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B]: mean log probability of the tokens that the mask keeps. `ids`, `mask`: [B, T]; `logprobs`: [B, T,
    vocab_size]."""
    chosen = logprobs.gather(-1, ids[..., None])[..., 0]
    return (chosen * mask).sum(1) / mask.sum(1)
