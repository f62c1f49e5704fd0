"""A converted GGUF file computes what the model computes from which it was written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, modeling_rope_utils

from inference.interface.errors import SourceError
from inference.models import causal_lm
from inference.models.gguf_file import convert, prepare
from tests.inference.conftest import make_model
from tests.inference.models.gguf_writer import TEMPLATE, train_tokenizer, write_gguf

VOCAB = train_tokenizer().get_vocab_size()
TOKENS = torch.arange(3, 60)
THETA = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def model_of(architecture: str = "llama", **options: Any) -> PreTrainedModel:
    return make_model(architecture, vocab_size=VOCAB, **options)


def logits(directory: Path, **options: Any) -> torch.Tensor:
    loaded = causal_lm.load(directory, torch.float32, torch.get_default_device(), **options)
    return loaded.reference_logits(TOKENS)


def expected(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=TOKENS[None]).logits[0]


def divisors(model: PreTrainedModel, rope: dict[str, Any]) -> torch.Tensor:
    """What llama.cpp writes as rope_freqs.weight."""
    plain = 1 / rope["rope_theta"] ** (torch.arange(0, 8, 2).float() / 8)
    return plain / modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](model.config, plain.device)[0]


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_converted_file_is_a_whole_model(tmp_path: Path, is_tied: bool) -> None:
    model = model_of(tie_word_embeddings=is_tied)
    directory = prepare(write_gguf(tmp_path / "tiny.gguf", model), tmp_path / "cache")
    assert torch.allclose(logits(directory), expected(model), atol=1e-4)
    assert (directory / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    tokenizer, original = AutoTokenizer.from_pretrained(directory), train_tokenizer()
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|user|>", "<|end|>")
    for text in ("the quick fox <|turn|>jugs", "  ÿ\n1234"):
        assert tokenizer.encode(text, add_special_tokens=False) == original.encode(text).ids
    written = (directory / "model.safetensors").stat().st_mtime_ns
    assert prepare(tmp_path / "tiny.gguf", tmp_path / "cache") == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["tiny.GGUF", "sha256-abc", "a name.bin"])
def test_a_file_needs_no_suffix(tmp_path: Path, name: str) -> None:
    """Ollama keeps its files without one."""
    model = model_of()
    directory = prepare(write_gguf(tmp_path / name, model), tmp_path / "cache")
    assert torch.allclose(logits(directory), expected(model), atol=1e-4)


@pytest.mark.parametrize(
    ("rope", "metadata"),
    [
        (
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        ),
        (
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 32,
            },
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
            },
        ),
        (LLAMA3, {}),
    ],
)
def test_the_scaling_of_the_rotary_embedding_is_kept(
    tmp_path: Path, rope: dict[str, Any], metadata: dict[str, Any]
) -> None:
    model = model_of(rope_parameters=rope, max_position_embeddings=128)
    tensors = {"rope_freqs.weight": divisors(model, rope)} if rope is LLAMA3 else {}
    file = write_gguf(tmp_path / "tiny.gguf", model, metadata=metadata, tensors=tensors)
    assert torch.allclose(logits(convert(file, tmp_path / "made")), expected(model), atol=1e-4)


def test_longrope_and_partial_rotation_are_kept(tmp_path: Path) -> None:
    factors = {"short_factor": [1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 5.0]}
    rope = {**THETA, **factors, "rope_type": "longrope", "partial_rotary_factor": 0.75}
    model = model_of(
        "phi3", rope_parameters=rope, max_position_embeddings=512, original_max_position_embeddings=32
    )
    tensors = {
        f"rope_factors_{kind}.weight": torch.tensor(factors[f"{kind}_factor"]) for kind in ("long", "short")
    }
    metadata = {"phi3.rope.scaling.original_context_length": 32}
    file = write_gguf(tmp_path / "tiny.gguf", model, "phi3", metadata, tensors)
    directory = convert(file, tmp_path / "made")
    assert torch.allclose(logits(directory, context_length=100), expected(model), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"architecture": "unheard"},
            "cannot convert this GGUF file of architecture 'unheard': GGUF model with",
        ),
        ({"metadata": {"split.count": 3}}, "is one of 3 parts; join them"),
        (
            {"metadata": {"llama.rope.scaling.type": "other"}},
            "rotary embedding of type 'other' is not supported",
        ),
        (
            {"tensors": {"rope_freqs.weight": torch.tensor([1.0, 2.0, 3.0, 4.0])}},
            r"\(rope_freqs.weight\) is not",
        ),
        ({"tensors": {"blk.0.attn_q.bias": torch.ones(32)}}, "it leaves out some of its tensors"),
        ({"without": "blk.1.ffn_down"}, "it finds no model.layers.1.mlp.down_proj.weight"),
    ],
)
def test_a_file_that_cannot_be_converted_completely_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model_of(), **options)
    with pytest.raises(SourceError, match=message) as error:
        prepare(file, tmp_path / "cache")
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model_of())
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SourceError, match="cannot be read as a GGUF file; it may be truncated"):
        convert(file, tmp_path / "made")


def test_another_file_under_the_same_name_is_converted_too(tmp_path: Path) -> None:
    first = prepare(write_gguf(tmp_path / "tiny.gguf", model_of(seed=1)), tmp_path / "cache")
    second = prepare(write_gguf(tmp_path / "tiny.gguf", model_of(seed=2)), tmp_path / "cache")
    assert not torch.allclose(logits(first), logits(second))
