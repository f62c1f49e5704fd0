"""A tiny Pharia checkpoint with random weights, laid out as the real one, and what the model computes.

The reference is plain torch, written from the description of the architecture. It shares no code with the
engine and with transformers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

Weights = dict[str, torch.Tensor]

CONTROL_TOKENS = [
    "<|endoftext|>",
    "<|padding|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
"""Their ids are their positions."""
END, BEGIN, START_HEADER, END_HEADER, END_OF_TURN = 0, 2, 3, 4, 5
CHARACTERS = [chr(number) for number in [10, *range(32, 127)]]
"""The other tokens."""

CONFIG: dict[str, Any] = {
    "architectures": ["PhariaForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_pharia.PhariaConfig",
        "AutoModelForCausalLM": "modeling_pharia.PhariaForCausalLM",
    },
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "hidden_act": "gelu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 8192,
    "mlp_bias": True,
    "model_type": "pharia-v1",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 199,
}
"""As the real config.json, with small sizes."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n{{ message['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)


def make_weights(seed: int = 0, **overrides: Any) -> Weights:
    """All tensors of the checkpoint, float32 on the CPU, also biases and norms, with random values."""
    config = CONFIG | overrides
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, rows in [("q", hidden), ("k", keys), ("v", keys), ("o", hidden)]:
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{prefix}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}.mlp.up_proj.bias"] = (intermediate,)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, intermediate)
        shapes[f"{prefix}.mlp.down_proj.bias"] = (hidden,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{prefix}.{norm}.weight": (hidden,), f"{prefix}.{norm}.bias": (hidden,)}
    shapes |= {"model.norm.weight": (hidden,), "model.norm.bias": (hidden,)}
    shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    generator = torch.Generator("cpu").manual_seed(seed)
    weights = {
        name: 0.3 * torch.randn(shape, generator=generator, device="cpu") for name, shape in shapes.items()
    }
    return {name: tensor + ("norm.weight" in name) for name, tensor in weights.items()}


def write_checkpoint(
    directory: Path, weights: Weights, *, shards: int = 1, trace: Path | None = None, **overrides: Any
) -> Path:
    """Writes the files that the real checkpoint has. Their code makes the file `trace` if it runs."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | overrides))
    code = f"import pathlib\npathlib.Path({str(trace or directory / 'trace')!r}).touch()\n"
    code += "raise RuntimeError('the code ran')\n"
    for name in ("configuration_pharia.py", "modeling_pharia.py", "tokenization_pharia.py"):
        (directory / name).write_text(code)
    _write_weights(directory, weights, shards)
    _write_tokenizer(directory)
    return directory


def _write_weights(directory: Path, weights: Weights, shards: int) -> None:
    names = sorted(weights)
    files = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    if shards == 1:
        files = {"model.safetensors": names}
    else:
        index = {name: file for file, inside in files.items() for name in inside}
        (directory / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )
    for file, inside in files.items():
        save_file({name: weights[name].contiguous() for name in inside}, directory / file, {"format": "pt"})


def _write_tokenizer(directory: Path) -> None:
    vocabulary = {token: i for i, token in enumerate([*CONTROL_TOKENS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(CONTROL_TOKENS)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|endoftext|>",
                "pad_token": "<|padding|>",
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )


def reference_logits(
    weights: Weights,
    token_ids: list[int],
    added: dict[int, torch.Tensor] | None = None,
    *,
    rotary: str = "interleaved",
    **overrides: Any,
) -> torch.Tensor:
    """The float32 logits [T, vocab_size] of one sequence.

    `added`: vectors [hidden_size] by layer, which are added to the layer's output from position 1 on.
    """
    config = CONFIG | overrides
    x = weights["model.embed_tokens.weight"].float()[token_ids]
    for layer in range(config["num_hidden_layers"]):
        part = _Part(weights, f"model.layers.{layer}")
        x = x + _attend(part, part.norm("input_layernorm", x), config, rotary)
        inner = part.linear("mlp.up_proj", part.norm("post_attention_layernorm", x))
        x = x + part.linear("mlp.down_proj", F.gelu(inner))
        if added and layer in added:
            x = torch.cat((x[:1], x[1:] + added[layer].float()))
    return _Part(weights, "model").norm("norm", x) @ weights["lm_head.weight"].float().T


class _Part:
    """The weights of one part of the model, in float32."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        self._weights, self._prefix = weights, prefix

    def _get(self, name: str) -> torch.Tensor:
        return self._weights[f"{self._prefix}.{name}"].float()

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self._get(f"{name}.weight").T + self._get(f"{name}.bias")

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return normal * self._get(f"{name}.weight") + self._get(f"{name}.bias")


def _attend(part: _Part, x: torch.Tensor, config: dict[str, Any], rotary: str) -> torch.Tensor:
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    length, head_size = len(x), config["hidden_size"] // heads

    def split(name: str, count: int) -> torch.Tensor:  # [count, T, head_size]
        return part.linear(f"self_attn.{name}_proj", x).view(length, count, head_size).transpose(0, 1)

    query = _rotate(split("q", heads), config, rotary)
    key = _rotate(split("k", key_heads), config, rotary)
    value = split("v", key_heads)
    outputs = []
    for head in range(heads):
        group = head // (heads // key_heads)
        scores = query[head] @ key[group].T / head_size**0.5
        hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        outputs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value[group])
    return part.linear("self_attn.o_proj", torch.cat(outputs, -1))


def _rotate(x: torch.Tensor, config: dict[str, Any], rotary: str) -> torch.Tensor:
    """Rotates pairs of [..., T, head_size] as complex numbers.

    "interleaved": the pairs are (0, 1), (2, 3), ...; "half": (0, n/2), (1, n/2 + 1), ...
    """
    length, size = x.shape[-2:]
    frequencies = config["rope_theta"] ** -(torch.arange(0, size, 2, device=x.device).double() / size)
    positions = torch.arange(length, device=x.device).double()
    positions /= (config["rope_scaling"] or {"factor": 1.0})["factor"]
    angles = positions[:, None] * frequencies
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    if rotary == "interleaved":
        pairs = torch.complex(x[..., ::2], x[..., 1::2]) * turn
        return torch.stack((pairs.real, pairs.imag), -1).flatten(-2)
    pairs = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
    return torch.cat((pairs.real, pairs.imag), -1)


def reference_greedy(
    weights: Weights, prompt: list[int], max_tokens: int, added: dict[int, torch.Tensor] | None = None
) -> list[int]:
    token_ids = list(prompt)
    for _ in range(max_tokens):
        token_ids.append(int(reference_logits(weights, token_ids, added)[-1].argmax()))
    return token_ids[len(prompt) :]
