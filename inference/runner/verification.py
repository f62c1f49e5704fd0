"""Checks that a model has the same output with the engine's attention as with its own. Runs once, at loading.

A model can use transformers' attention interface and still keep state elsewhere, as recurrent layers
do, or use an attention mask that the engine's attention does not see. It would run, but give wrong answers.
"""

import random
import statistics

import torch

from inference.backends.backend import Backend
from inference.compute.attention import ForwardContext
from inference.compute.batch import BatchBuilder
from inference.compute.kv_cache import KVCache
from inference.models.causal_lm import CausalLM
from inference.models.errors import UnsupportedModelError
from inference.runner.rehearsal import make_sequence

_LENGTHS = (150, 90, 41, 33, 22)
"""Tokens of each prompt. They reach several tiles of keys, and pages that are not neighbours."""
_BLOCK_SIZE = 16
_FIRST_CHUNK = 19  # tokens of each prompt in the first step; the second computes all others but the last
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
"""Limit for the error of the log probabilities, relative to their standard deviation."""


Expectation = list[tuple[list[int], torch.Tensor]]
"""Prompts, each with the log probabilities [vocab_size] of the next token."""


@torch.inference_mode()
def compute_reference(model: CausalLM) -> Expectation:
    """The output of the model's own code. To be called before anything in the model is replaced.

    Raises UnsupportedModelError if the output is not a number.
    """
    prompts = _prompts(model)
    tensors = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    expectation = [
        (prompt, model.reference_logits(tensor)[-1].log_softmax(-1))
        for prompt, tensor in zip(prompts, tensors, strict=True)
    ]
    if any(logprobs.isnan().any() for _, logprobs in expectation):
        raise UnsupportedModelError(
            "the model's output is not a number: some of its weights are not finite, or its numbers are too "
            f"large for {str(model.dtype).removeprefix('torch.')}; another engine.dtype may help"
        )
    return expectation


def _prompts(model: CausalLM) -> list[list[int]]:
    rng = random.Random(0)  # noqa: S311 - any tokens will do
    longest = model.context_length or max(_LENGTHS)
    return [[rng.randrange(model.vocab_size) for _ in range(min(length, longest))] for length in _LENGTHS]


@torch.inference_mode()
def check(model: CausalLM, backend: Backend, expectation: Expectation) -> None:
    """Raises UnsupportedModelError if the engine's output differs from the expectation."""
    outputs = _run_paged(model, [prompt for prompt, _ in expectation], backend)
    errors = [_error(logits, expected) for logits, (_, expected) in zip(outputs, expectation, strict=True)]
    # The median, because rounding may route a token to another expert.
    if not statistics.median(errors) <= _TOLERANCE[model.dtype]:
        raise UnsupportedModelError(
            "the model's layers keep state outside of attention, or use an attention mask of their own"
        )


@torch.inference_mode()
def check_runs(model: CausalLM, backend: Backend) -> None:
    """Raises UnsupportedModelError if the engine's output is not a number, or whatever the model raises.

    For a model whose weights were rounded: its output has no limits of error.
    """
    outputs = _run_paged(model, _prompts(model)[-2:], backend)
    if any(logits.isnan().any() for logits in outputs):
        raise UnsupportedModelError("the output is not a number")


def _error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square error of the log probabilities, relative to their standard deviation."""
    difference = logits.log_softmax(-1) - expected
    return float(difference.square().mean().sqrt() / expected.std())


def _run_paged(model: CausalLM, prompts: list[list[int]], backend: Backend) -> list[torch.Tensor]:
    """The logits [vocab_size] at the end of each prompt, computed in three steps on a small KV cache."""
    count = max(-(-len(prompt) // _BLOCK_SIZE) for prompt in prompts)
    cache = KVCache(model.layer_shapes, len(prompts) * count, _BLOCK_SIZE, model.device)
    builder = BatchBuilder(_BLOCK_SIZE, cache.padding_slot, model.device, in_place=backend.attend is not None)
    # The blocks of a sequence are not neighbours.
    sequences = [
        make_sequence(prompt, list(range(first, len(prompts) * count, len(prompts))))
        for first, prompt in enumerate(prompts)
    ]
    for end in (_FIRST_CHUNK, -1, None):
        for sequence in sequences:
            computed = sequence.num_computed_tokens
            sequence.num_scheduled_tokens = len(sequence.token_ids[computed:end])
        batch = builder.build(sequences)
        logits = model.forward(ForwardContext(batch, cache, backend.attend))
        for sequence in sequences:
            sequence.num_computed_tokens += sequence.num_scheduled_tokens
    rows = dict(zip(batch.sampling, logits, strict=True))
    return [rows[sequence] for sequence in sequences]
