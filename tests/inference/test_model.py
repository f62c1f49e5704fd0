"""What is learnt of a model when it is loaded, and which models are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference.kv_cache import LayerShape
from inference.model import CausalLM, UnsupportedModelError, load
from tests.inference.conftest import make_model


def test_the_shape_of_what_each_layer_stores_is_found_out() -> None:
    assert CausalLM(make_model("llama")).layer_shapes == [LayerShape(2, 8, 8, torch.float32)] * 3


def test_stop_tokens_come_from_the_generation_config_first() -> None:
    model = make_model("llama")
    model.generation_config.eos_token_id = [5, 6]
    assert CausalLM(model).stop_token_ids == (5, 6)
    model.generation_config.eos_token_id = None
    assert CausalLM(model).stop_token_ids == (1,)


def test_the_digest_is_that_of_the_values(tmp_path: Path) -> None:
    model = make_model("llama")
    digest = CausalLM(model).digest()
    model.save_pretrained(tmp_path)
    assert load(tmp_path, torch.float32, torch.device("cpu")).digest() == digest


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_the_digest_changes_with_a_single_weight(name: str) -> None:
    model = make_model("llama")
    digest = CausalLM(model).digest()
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[3] += 1e-6
    assert CausalLM(model).digest() != digest


def test_the_digest_changes_when_two_weights_change_places() -> None:
    model = make_model("llama")
    digest = CausalLM(model).digest()
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight[[0, 1]] = weight[[1, 0]].clone()
    assert CausalLM(model).digest() != digest


def test_the_digest_changes_with_the_dtype() -> None:
    assert CausalLM(make_model("llama")).digest() != CausalLM(make_model("llama").bfloat16()).digest()


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_batch_are_refused(rope_type: str) -> None:
    model = make_model("llama")
    model.config.rope_parameters = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UnsupportedModelError, match=rope_type):
        CausalLM(model)


def test_attention_that_would_not_be_honoured_is_refused() -> None:
    model = make_model("llama")

    def with_sinks(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return arguments, {**options, "s_aux": torch.zeros(4)}

    model.model.layers[2].self_attn.register_forward_pre_hook(with_sinks, with_kwargs=True)
    with pytest.raises(UnsupportedModelError, match="s_aux"):
        CausalLM(model)


def test_a_model_with_attention_of_its_own_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(UnsupportedModelError):
        CausalLM(model)
