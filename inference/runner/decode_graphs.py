"""Captures decode steps at the start, and compares them with steps that launch each operation."""

import logging
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from inference.compute.batch import BatchBuilder
from inference.compute.graphs import Capture, Forward, Graphs
from inference.compute.kv_cache import KVCache
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from inference.runner.rehearsal import make_sequence, powers_of_two
from inference.scheduling.sequence import Sequence
from inference.scheduling.steering import BlockVectors, Steering
from inference.steering.bank import SteeringBank

_log = logging.getLogger(__name__)

_CONTEXTS = (1100, 530, 270, 150, 70, 9)
"""Lengths of the trial's contexts in tokens. They reach several key tiles and splits, and many pages."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}
"""Limit for the error of the logits, relative to their standard deviation. The operations are the same, so
the error is usually 0. A wrong page, position or steering row gives an error near 1."""

Context = tuple[list[int], list[int]]
"""Token ids, and the blocks of their keys and values."""


@dataclass(frozen=True)
class DecodeGraphs:
    """Builds the captured steps of one model and cache."""

    model: CausalLM
    forward: Forward
    builder: BatchBuilder
    cache: KVCache
    bank: SteeringBank
    config: EngineConfig
    longest: int
    """The largest number of tokens of a sequence."""

    def capture(self, capture: Capture) -> Graphs | None:
        """Returns None and logs a warning if steps cannot be captured, or if a captured one is wrong."""
        started = time.perf_counter()
        try:
            graphs = Graphs(
                self.forward,
                capture,
                max_sequences=min(self.config.max_running, self.config.max_batch_tokens),
                max_blocks=-(-self.longest // self.config.block_size),
                vocab_size=self.model.vocab_size,
                padding_slot=self.cache.padding_slot,
                device=self.model.device,
            )
            wrong = self._find_error(graphs)
        except torch.AcceleratorError:
            raise  # The device is unusable for the rest of the process's life.
        except RuntimeError as error:  # the model's code waits for the device, for example
            _log.warning("decode steps cannot be captured, so the server will be slower: %s", error)
            return None
        if wrong:
            _log.warning(
                "captured decode steps give other results, so the server will be slower without them: "
                "an error of %.2g for %d sequences",
                *wrong,
            )
            return None
        seconds = time.perf_counter() - started
        _log.info("captured decode steps for %d batch sizes in %.1f s", len(graphs.sizes), seconds)
        return graphs

    def _find_error(self, graphs: Graphs) -> tuple[float, int] | None:
        """The first error above the tolerance, and its batch size. None if there is none."""
        contexts = self._fill_cache()
        steering = self._make_steering()
        for size in self._trial_sizes(graphs):
            decodes = [self._decode(contexts, i % len(contexts), steering) for i in range(size)]
            error = self._error(graphs, decodes)
            if not error <= _TOLERANCE[self.model.dtype]:
                return error, size
        return None

    def _make_steering(self) -> Steering:
        """Random vectors at all decoder blocks."""
        count, _, hidden_size = self.bank.vectors.shape
        vectors = np.random.default_rng(0).standard_normal((count, hidden_size)).astype(np.float32)
        return Steering(BlockVectors(tuple(range(count)), vectors))

    def _trial_sizes(self, graphs: Graphs) -> Iterator[int]:
        """Sizes with different kernels, and some that are padded to a captured size."""
        for size in powers_of_two(graphs.sizes[-1]):
            yield size
            if size > 4:
                yield size - 1

    def _error(self, graphs: Graphs, sequences: list[Sequence]) -> float:
        """The median over rows, because rounding may route a token to another expert."""
        batch = self.builder.build(sequences)
        expected = torch.empty(len(sequences), self.model.vocab_size, device=self.model.device)
        self.forward(batch, expected)
        difference = graphs.run(batch) - expected
        errors = difference.square().mean(1).sqrt() / expected.std(1)
        return float(statistics.median(errors.tolist()))

    def _decode(self, contexts: list[Context], number: int, steering: Steering) -> Sequence:
        """The last token of a context. Sequences of the same context write the same keys and values."""
        token_ids, blocks = contexts[number]
        chosen = steering if number % 2 else None  # alike for all sequences of a context
        return make_sequence(token_ids, blocks, len(token_ids) - 1, steering=chosen)

    def _fill_cache(self) -> list[Context]:
        """Computes some contexts, all but their last token."""
        rng = random.Random(0)  # noqa: S311 - any tokens will do
        size = self.config.block_size
        free = list(range(self.cache.num_blocks))
        rng.shuffle(free)
        contexts = []
        for length in sorted({min(length, self.longest) for length in _CONTEXTS}):
            count = -(-length // size)
            if len(free) < count:
                break
            blocks, free = free[:count], free[count:]
            token_ids = [rng.randrange(self.model.vocab_size) for _ in range(length)]
            self._compute(token_ids, blocks)
            contexts.append((token_ids, blocks))
        return contexts[::-1]

    def _compute(self, token_ids: list[int], blocks: list[int]) -> None:
        for begin in range(0, len(token_ids) - 1, self.config.max_batch_tokens):
            end = min(begin + self.config.max_batch_tokens, len(token_ids) - 1)
            batch = self.builder.build([make_sequence(token_ids[:end], blocks, begin)])
            self.forward(batch, torch.empty(1, self.model.vocab_size, device=self.model.device))
