"""What the worker's code finds for `tiller doctor`, on this machine and for real files."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from inference.diagnosis import diagnose
from inference.interface.config import EngineConfig
from inference.interface.diagnosis import Diagnosis
from tests.inference.models.checkpoints import make_model_directory


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    directory = make_model_directory(tmp_path / "model")
    return EngineConfig(source=str(directory), cache_directory=str(tmp_path / "cache"), device="cpu")


def test_this_machine(config: EngineConfig) -> None:
    found = diagnose(config)
    assert (found.device, found.device_error) == ("cpu", "")
    assert found.torch == torch.__version__
    assert bool(found.gpus) == torch.cuda.is_available() == (not found.cuda_error)
    assert Path(found.compiler).is_file()
    assert (found.compiler_error, found.model_error, found.has_kernels) == ("", "", False)
    assert found.model.directory == config.source
    assert found.model.numbers > 0


def test_a_compiler_that_fails_is_named(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    found = diagnose(config)
    assert found.compiler == ""
    assert "false cannot compile" in found.compiler_error


def test_without_a_compiler_the_error_says_so(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert diagnose(config).compiler_error.startswith("no C++ compiler was found")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named(config: EngineConfig) -> None:
    found = diagnose(msgspec.structs.replace(config, device="cuda"))
    assert (found.device, found.gpus) == ("", [])
    assert found.device_error == "engine.device is cuda, but torch finds no CUDA device"


def test_a_broken_model_is_named(config: EngineConfig) -> None:
    (Path(config.source) / "model.safetensors").write_bytes(b"x")
    assert "is not a safetensors file" in diagnose(config).model_error


def test_it_runs_as_a_process_of_its_own(config: EngineConfig) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inference.diagnosis"],
        input=msgspec.json.encode(config),
        capture_output=True,
        check=True,
    )
    assert msgspec.json.decode(done.stdout, type=Diagnosis).model.directory == config.source
