"""Tiny random models of several architectures, and an engine around one of them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest.mock import patch

import msgspec
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from inference.backends import selection
from inference.backends.backend import Backend
from inference.compute.graphs import Capture
from inference.driver import Driver, Result
from inference.engine import Engine
from inference.interface.config import EngineConfig
from inference.interface.requests import GenerationRequest, SamplingParams, TokenEvent
from inference.models.causal_lm import CausalLM
from inference.runner.adaptation import quantize
from inference.runner.model_runner import ModelRunner
from inference.steering.direction_files import DirectionFiles

torch.set_num_threads(1)  # more threads do not speed up models this small

VOCAB_SIZE = 199
COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
ARCHITECTURES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 11},
    "gemma2": {"sliding_window": 9, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 9, "query_pre_attn_scalar": 8},
    "qwen2": {},
    "phi3": {},
    "granite": {"logits_scaling": 3.0},
    "starcoder2": {"hidden_act": "gelu"},  # Pharia is loaded into it
    "gemma3n_text": {  # its blocks return several versions of the hidden states
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "intermediate_size": [48] * 3,
        "activation_sparsity_pattern": [0.0] * 3,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def make_model(architecture: str = "llama", seed: int = 0, **overrides: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    options = {**COMMON, **ARCHITECTURES.get(architecture, {}), **overrides}
    config = AutoConfig.for_model(architecture, **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.to(torch.get_default_device())
    sharpen(model)
    return model.eval()


def sharpen(model: PreTrainedModel) -> None:
    """Sets larger weights than the usual ones, so that every part matters and greedy output varies."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)


LOGPROB_TOLERANCE = 1e-4
"""Between batches of different sizes: the last bits of a float32 product of torch's depend on the number of
its rows, on some processors more than on others."""


def assert_results_close(results: list[Result], expected: list[Result]) -> None:
    """They are equal, but for the last bits of log probabilities."""
    assert [_without_numbers(result) for result in results] == [_without_numbers(one) for one in expected]
    numbers = [number for one in expected for number in _numbers(one)]
    assert [number for one in results for number in _numbers(one)] == pytest.approx(
        numbers, rel=0, abs=LOGPROB_TOLERANCE
    )


def _without_numbers(result: Result) -> list[tuple[TokenEvent, list[int] | None]]:
    """The events, and of each the tokens that log probabilities are given of."""
    return [
        (
            msgspec.structs.replace(event, logprobs=None),
            event.logprobs and [token_id for token_id, _ in event.logprobs.top],
        )
        for event in result.events
    ]


def _numbers(result: Result) -> list[float]:
    given = [event.logprobs for event in result.events if event.logprobs is not None]
    return [number for one in given for number in (one.logprob, *(value for _, value in one.top))]


def build_driver(
    model: PreTrainedModel,
    directions: DirectionFiles | None = None,
    capture: Capture | None = None,
    backend: Backend | None = None,
    eager: bool = False,
    warmed_up: bool = False,
    **config: object,
) -> Driver:
    """Builds an engine around `model`. Earlier drivers of the same model must not run any more.

    `capture` replaces the back end's capture. `backend` replaces the back end that would be chosen. With
    `eager`, no step is captured. With `warmed_up`, captured steps are followed by the warm-up.
    """
    for block in model.model.layers:
        block._forward_hooks.clear()  # hooks that an earlier engine added for steering
    options = {"num_blocks": None, **config}
    num_blocks = options.pop("num_blocks")
    if model.device.type == "cuda":
        options.setdefault("max_running", 32)  # fewer steps to capture
    engine_config = EngineConfig(**{"kv_cache_gib": 0.01, "seed": 0, **options})
    causal_lm = CausalLM(model, engine_config.context_length)
    backend = backend or selection.choose_backend(causal_lm, engine_config)
    backend = replace(backend, capture=None if eager else capture or backend.capture)
    if backend.fuse:
        causal_lm.transform(backend.fuse)
    if backend.quantize and engine_config.quantization != "none":
        quantize(causal_lm, backend)
    if num_blocks is not None:
        per_token = sum(shape.num_bytes for shape in causal_lm.layer_shapes)
        gib = num_blocks * engine_config.block_size * per_token / 2**30
        engine_config = EngineConfig(**{"seed": 0, **options, "kv_cache_gib": gib})
    with nullcontext() if warmed_up else patch("inference.runner.model_runner.warm_up"):
        runner = ModelRunner(causal_lm, engine_config, backend)
    if hasattr(capture, "num_replayed"):
        capture.num_replayed = 0  # without the steps at the start
    return Driver(Engine(runner, engine_config, directions), check=True, max_steps=10_000)


@pytest.fixture
def llama() -> PreTrainedModel:
    return make_model("llama")


def request(
    request_id: str,
    prompt: list[int],
    max_tokens: int = 16,
    *,
    n: int = 1,
    nice: bool = False,
    stop_token_ids: tuple[int, ...] = (),
    **sampling: object,
) -> GenerationRequest:
    """A request, greedy by default."""
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    return GenerationRequest(
        request_id, prompt, max_tokens, n=n, sampling=params, nice=nice, stop_token_ids=stop_token_ids
    )


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, transformers' own attention runs in the model."""
    engine_attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    yield
    model.set_attn_implementation(engine_attention)


def generate(
    model: PreTrainedModel, prompt: list[int], max_tokens: int, eos_token_id: int | None = None
) -> list[int]:
    """The reference: greedy continuation by transformers, with its own attention and cache."""
    with plain_attention(model):
        output = model.generate(
            torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=eos_token_id,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()
