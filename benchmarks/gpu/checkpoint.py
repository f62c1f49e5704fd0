"""Saves a model with random weights, as a server loads it."""

import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.gpu.figures import Figure
from benchmarks.steering_cost import llama_config

_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}[assistant] "
)


def save(model: str, dtype: torch.dtype, device: torch.device, directory: Path) -> Figure:
    """Saves a model with no stop token, and a tokenizer of single bytes."""
    started = time.perf_counter()
    torch.manual_seed(0)
    config = llama_config(model)
    config.eos_token_id = None
    with device:
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(directory)
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"[{i}]" for i in range(len(pieces), config.vocab_size)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(directory)
    return Figure(model, "checkpoint saved", "for the server", time.perf_counter() - started)
