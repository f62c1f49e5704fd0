"""What the engine learns about a model when it loads it, and which models it refuses."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from inference.compute.kv_cache import LayerShape
from inference.models.causal_lm import CausalLM, load
from inference.models.errors import UnsupportedModelError
from tests.inference.conftest import make_model


def test_layer_shapes_are_detected() -> None:
    assert CausalLM(make_model("llama")).layer_shapes == [LayerShape(2, 8, 8, torch.float32)] * 3


def test_the_digest_is_the_same_after_save_and_load(tmp_path: Path) -> None:
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


def test_the_digest_changes_when_two_rows_are_swapped() -> None:
    model = make_model("llama")
    digest = CausalLM(model).digest()
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight[[0, 1]] = weight[[1, 0]].clone()
    assert CausalLM(model).digest() != digest


def test_the_digest_is_the_same_in_another_dtype_that_holds_the_same_numbers(tmp_path: Path) -> None:
    model = make_model("llama").bfloat16()
    model.save_pretrained(tmp_path)
    wide, narrow = (load(tmp_path, dtype, torch.device("cpu")) for dtype in (torch.float32, torch.bfloat16))
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert wide.digest() == narrow.digest() == CausalLM(model).digest()


def test_the_digest_changes_when_the_weights_are_rounded() -> None:
    assert CausalLM(make_model("llama")).digest() != CausalLM(make_model("llama").bfloat16()).digest()


class Intruder:
    """An object that makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._trace,)


def add_code(directory: Path, trace: Path, **config: object) -> None:
    """Adds code to the model directory and names it in config.json. The code makes a file if it runs."""
    names = {"AutoConfig": "intruder.Config", "AutoModelForCausalLM": "intruder.Model"}
    content = json.loads((directory / "config.json").read_text()) | {"auto_map": names} | config
    (directory / "config.json").write_text(json.dumps(content))
    (directory / "intruder.py").write_text(
        f"open({str(trace)!r}, 'w')\nclass Config: pass\nclass Model: pass"
    )


def test_code_in_the_model_directory_is_not_run_if_transformers_has_a_class(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "model")
    add_code(tmp_path / "model", tmp_path / "trace")
    loaded = load(tmp_path / "model", torch.float32, torch.device("cpu"))
    assert type(loaded._model) is LlamaForCausalLM
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("model_type", ["intruder", None])
def test_a_model_that_needs_its_own_code_is_refused(tmp_path: Path, model_type: str | None) -> None:
    make_model("llama").save_pretrained(tmp_path / "model")
    add_code(tmp_path / "model", tmp_path / "trace", model_type=model_type)
    with pytest.raises(UnsupportedModelError, match="needs the model's own code"):
        load(tmp_path / "model", torch.float32, torch.device("cpu"))
    assert not (tmp_path / "trace").exists()


def test_tensors_that_are_missing_or_have_another_shape_are_named(tmp_path: Path) -> None:
    model = make_model("llama")
    weights = model.state_dict() | {"model.norm.weight": torch.zeros(7)}
    model.save_pretrained(tmp_path, state_dict=dict(weights))
    with pytest.raises(
        UnsupportedModelError, match=r"1 of .*norm.weight has the shape \[7\] instead of \[32\]"
    ):
        load(tmp_path, torch.float32, torch.device("cpu"))
    del weights["lm_head.weight"]
    model.save_pretrained(tmp_path, state_dict=dict(weights))
    with pytest.raises(UnsupportedModelError, match=r"2 of .*for example: lm_head\.weight is missing"):
        load(tmp_path, torch.float32, torch.device("cpu"))


def test_tensors_that_the_model_does_not_use_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_model("llama", attention_bias=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"attention_bias": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load(tmp_path, torch.float32, torch.device("cpu"))
    assert "does not use 12 tensors of its checkpoint, for example model.layers.0.self_attn.k_proj.bias" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("generation_config.json", "[1]", "TypeError: 'list' object is not a mapping"),
        ("config.json", {"hidden_act": "foo"}, "KeyError: 'foo'"),
        ("config.json", {"num_attention_heads": 0, "head_dim": None}, "ZeroDivisionError"),
        ("config.json", {"quantization_config": "int4"}, "AttributeError: 'str'"),
    ],
)
def test_values_that_transformers_fails_on_are_an_error_that_names_the_model(
    tmp_path: Path, file: str, content: Any, reason: str
) -> None:
    make_model("llama").save_pretrained(tmp_path)
    if isinstance(content, dict):
        content = json.dumps(json.loads((tmp_path / file).read_text()) | content)
    (tmp_path / file).write_text(content)
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        load(tmp_path, torch.float32, torch.device("cpu"))
    assert str(caught.value).startswith(f"{tmp_path}: transformers ")


@pytest.mark.parametrize("model_type", ["llava", "t5", "qwen2_vl", "nothing"])
def test_a_model_of_another_kind_is_refused_by_name(tmp_path: Path, model_type: str) -> None:
    make_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=f"models of type {model_type} are not supported"):
        load(tmp_path, torch.float32, torch.device("cpu"))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    weights = {"lm_head.weight": Intruder(tmp_path / "trace")}
    torch.save(weights, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load(tmp_path / "model", torch.float32, torch.device("cpu"))
    assert not (tmp_path / "trace").exists()


def test_unsupported_attention_arguments_are_refused() -> None:
    model = make_model("llama")

    def with_sinks(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return arguments, {**options, "s_aux": torch.zeros(4)}

    model.model.layers[2].self_attn.register_forward_pre_hook(with_sinks, with_kwargs=True)
    with pytest.raises(UnsupportedModelError, match="s_aux"):
        CausalLM(model)


def test_a_model_that_does_not_use_the_attention_interface_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(UnsupportedModelError, match="models of type bloom are not supported"):
        CausalLM(model)


def test_a_model_without_references_is_freed() -> None:
    """transformers' registry of attention functions lives as long as the process, and must hold no model."""
    model = make_model("llama")
    dropped = weakref.ref(CausalLM(model)._model)
    del model
    gc.collect()
    assert dropped() is None
