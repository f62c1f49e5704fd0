"""What the operator sees if the kernels cannot be compiled, and what the engine then does."""

import time
from pathlib import Path

import pytest
import torch

from inference.backends import selection
from inference.backends.backend import TORCH, KernelError
from inference.backends.cpu import build
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from tests.inference.conftest import make_model


def test_a_missing_compiler_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelError, match=r"no C\+\+ compiler"):
        build._compile_once(tmp_path / "kernels" / "library.so")


def test_the_error_of_the_compiler_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'fatal error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(KernelError, match="no such thing"):
        build._compile_once(tmp_path / "kernels" / "library.so")
    assert [file.suffix for file in (tmp_path / "kernels").iterdir()] == [".lock"]


def test_a_cache_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file in the place of the directory")
    with pytest.raises(KernelError, match="cannot be written"):
        build._compile_once(tmp_path / "kernels" / "library.so")


def test_what_is_compiled_ahead_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_slowly(compiler: str, library: Path, target: tuple[str, ...]) -> None:
        time.sleep(0.2)
        compiled.append(library)
        library.write_bytes(b"")

    monkeypatch.setattr(build, "_compile_with", compile_slowly)
    monkeypatch.setattr(build, "_shipped", lambda level: tmp_path / "none")
    build.compile_ahead(tmp_path)
    while not (tmp_path / "kernels").exists():
        time.sleep(0.01)
    build._compile_once(build.library(tmp_path))
    assert compiled == [build.library(tmp_path)]


def fail(_: Path) -> None:
    raise KernelError("no C++ compiler was found")


def test_a_float32_model_runs_without_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "load", fail)
    assert selection.choose_backend(CausalLM(make_model()), EngineConfig()) == TORCH
    assert "no C++ compiler" in caplog.text


def test_quantization_needs_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load", fail)
    with pytest.raises(KernelError):
        selection.choose_backend(CausalLM(make_model()), EngineConfig(quantization="integer"))


def test_quantization_needs_a_float32_model() -> None:
    model = CausalLM(make_model().to(torch.bfloat16))
    assert selection.choose_backend(model, EngineConfig()) == TORCH
    with pytest.raises(KernelError, match="float32"):
        selection.choose_backend(model, EngineConfig(quantization="integer"))
