"""The embedded model in plain transformers, steered by the `steering-vectors` package. Knows no engine.

So an independent implementation of steering measures the server's concepts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from steering_vectors import SteeringVector
from transformers import AutoModelForCausalLM, AutoTokenizer

_BATCH = 16


class PlainModel:
    def __init__(self, directory: Path, prompt: str) -> None:
        """`prompt`: the user message before every text."""
        self.model = AutoModelForCausalLM.from_pretrained(directory).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        messages = [{"role": "user", "content": prompt}]
        rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        self.prefix = self.tokenizer(rendered, add_special_tokens=False).input_ids

    @contextmanager
    def steered(self, vectors: dict[int, torch.Tensor]) -> Iterator[None]:
        """Adds a vector [hidden_size] to each decoder block's output, at every position but the first."""
        with SteeringVector(vectors).apply(self.model, min_token_index=1):
            yield

    @torch.inference_mode()
    def logprobs(self, texts: list[str]) -> torch.Tensor:
        """[len(texts)]: each text's log probability per token, in nats."""
        return torch.cat([self._score(*batch) for batch in self._batches(texts)])

    @torch.inference_mode()
    def distributions(self, text: str) -> torch.Tensor:
        """[T, vocab_size]: the log probabilities that predict each token of a text."""
        [(ids, mask)] = self._batches([text])
        return self._predict(ids, mask)[0]

    def _batches(self, texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows = [self.prefix + self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        batches = []
        for start in range(0, len(rows), _BATCH):
            chunk = [torch.tensor(row) for row in rows[start : start + _BATCH]]
            ids = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in chunk])[:, None]
            batches.append((ids, mask))
        return batches

    def _predict(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kept = ids.shape[1] - len(self.prefix) + 1
        logits = self.model(ids, attention_mask=mask.long(), use_cache=False, logits_to_keep=kept).logits
        return logits[:, :-1].log_softmax(-1)

    def _score(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        start = len(self.prefix)
        chosen = self._predict(ids, mask).gather(-1, ids[:, start:, None])[..., 0]
        kept = mask[:, start:]
        return (chosen * kept).sum(1) / kept.sum(1)
