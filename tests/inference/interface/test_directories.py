"""A model's local files are checked before anything is loaded. Each error is one line that names the file."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.interface.directories import find_local
from inference.interface.errors import SourceError
from tests.inference.models.checkpoints import POINTER, make_model_directory, shard


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_model_directory(tmp_path / "model")


def refusal(source: Path | str) -> str:
    with pytest.raises(SourceError) as error:
        find_local(str(source))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_complete_directory_is_used(directory: Path) -> None:
    assert find_local(str(directory)) == directory
    shard(directory)
    assert find_local(str(directory)) == directory


def test_a_relative_directory_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model_directory(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert find_local("org/model") == Path("org/model")


@pytest.mark.parametrize("source", ["/no/such/directory", "./missing", "~/missing", "missing", "a/b/c"])
def test_the_error_names_a_missing_directory(source: str) -> None:
    assert refusal(source) == f"model directory {source} does not exist"


def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    file = tmp_path / "any.name"
    file.write_bytes(b"GGUF\x03\0\0\0")
    assert find_local(str(file)) == file
    file.write_bytes(b"GGU")
    assert refusal(file) == f"{file} is neither a directory nor a GGUF file"
    file.write_text(POINTER)
    assert "any.name is a Git LFS pointer" in refusal(file)
    assert refusal("/dev/zero") == "/dev/zero is neither a directory nor a GGUF file"
    assert refusal("org/model.gguf") == "model file org/model.gguf does not exist"


def write(name: str, content: str | bytes = "") -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data) and None


def link_nowhere(name: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / name).symlink_to("blobs/gone")

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:size]) and None


def without_weights(*others: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        for name in others:
            (directory / name).write_bytes(b"x")

    return change


WEIGHTS = "model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), "has no config.json"),
        (write("config.json", "{"), "config.json cannot be read: Expecting"),
        (write("config.json", "[]"), "config.json must contain a JSON object"),
        (write("config.json", POINTER), "config.json is a Git LFS pointer instead of the file"),
        (remove("tokenizer.json"), "has no tokenizer.json$"),
        (write("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
        (write(WEIGHTS, POINTER), "model.safetensors is a Git LFS pointer .* run `git lfs pull`"),
        (write(WEIGHTS, b""), "model.safetensors is not a safetensors file"),
        (write(WEIGHTS, b"PK\x03\x04" * 9), "model.safetensors is not a safetensors file"),
        (write(WEIGHTS, b"\x08" + bytes(7) + b"not JSON"), "model.safetensors is not a safetensors file"),
        (truncate(WEIGHTS, 40), "model.safetensors is truncated: it ends within its header"),
        (truncate(WEIGHTS, -1), r"model.safetensors is truncated: it has \d+ of \d+ bytes"),
        (without_weights(), "has no weights: neither model.safetensors nor model.safetensors.index.json"),
        (link_nowhere(WEIGHTS), "model.safetensors is a link to blobs/gone, which is not a file$"),
        (link_nowhere(f"{WEIGHTS}.index.json"), "index.json is a link to blobs/gone, which is not a file$"),
        (without_weights("pytorch_model.bin"), r"pickled files only \(pytorch_model.bin\).*save_pretrained"),
        (
            without_weights("consolidated.00.pth", "params.json"),
            r"pickled files only \(consolidated.00.pth\)",
        ),
        (without_weights("consolidated.safetensors"), "has consolidated.safetensors, but neither"),
        (without_weights("model.Q4_K_M.gguf"), "to serve model.Q4_K_M.gguf, set model.source to the path"),
        (without_weights("adapter_config.json", "adapter_model.safetensors"), "is an adapter .*merge"),
    ],
)
def test_a_broken_directory_is_refused(directory: Path, change: Callable[[Path], None], message: str) -> None:
    change(directory)
    assert re.search(message, refusal(directory))


def test_an_adapter_alone_is_refused(directory: Path) -> None:
    (directory / "config.json").rename(directory / "adapter_config.json")
    assert "is an adapter (adapter_config.json) and not a whole model" in refusal(directory)


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "vocab.json"])
def test_another_tokenizer_is_named_with_the_way_to_convert_it(directory: Path, name: str) -> None:
    (directory / "tokenizer.json").rename(directory / name)
    assert re.search(
        f"has no tokenizer.json, only {name}; make it with .*save_pretrained", refusal(directory)
    )


def test_weights_of_modelopt_are_refused_by_name(directory: Path) -> None:
    (directory / "hf_quant_config.json").write_text('{"producer": {"name": "modelopt"}}')
    assert "its weights are quantized with ModelOpt (hf_quant_config.json), which" in refusal(directory)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": None}}},
        {"quant_method": "fp8", "ignored_layers": [5]},
    ],
)
def test_a_strange_quantization_is_one_line(directory: Path, quantization: dict[str, object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    assert f"its weights are quantized with {quantization['quant_method']}" in refusal(directory)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "hqq", "mxfp4"])
def test_quantized_weights_are_refused_by_name(tmp_path: Path, method: str) -> None:
    quantized = {"quantization_config": {"quant_method": method}}
    directory = make_model_directory(tmp_path / "a", **quantized)
    assert f"its weights are quantized with {method} (config.json)" in refusal(directory)
    assert f"with {method}" in refusal(make_model_directory(tmp_path / "b", text_config=quantized))


def test_fp8_weights_are_accepted(tmp_path: Path) -> None:
    blocks = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    assert find_local(str(make_model_directory(tmp_path, quantization_config=blocks)))


def test_a_configuration_without_quantization_is_accepted(tmp_path: Path) -> None:
    for number, value in enumerate([None, {}]):
        assert find_local(str(make_model_directory(tmp_path / str(number), quantization_config=value)))


def test_broken_shards_are_named(directory: Path) -> None:
    first, second = shard(directory)
    index = directory / "model.safetensors.index.json"
    second.write_bytes(second.read_bytes()[:-4])
    assert f"{second} is truncated" in refusal(directory)
    second.write_text(POINTER)
    assert f"{second} is a Git LFS pointer" in refusal(directory)
    second.unlink()
    assert refusal(directory) == f"{directory} has no {second.name}, which {index.name} names"
    second.symlink_to("blobs/gone")
    assert refusal(directory) == f"{second} is a link to blobs/gone, which is not a file"
    second.unlink()
    maps: list[object] = [
        {},
        {"a": 1},
        {"a": "*"},
        {"a": "../model.safetensors"},
        {"a": "/x.safetensors"},
        {"a": "x.bin"},
    ]
    for content in ("{", "[]", "{}", *(json.dumps({"weight_map": each}) for each in maps)):
        index.write_text(content)
        assert str(index) in refusal(directory)
    index.write_text(POINTER)
    assert f"{index} is a Git LFS pointer" in refusal(directory)
    assert first.is_file()
