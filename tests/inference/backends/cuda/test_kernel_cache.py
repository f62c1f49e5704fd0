"""Compiled Triton kernels are kept below the cache directory."""

import logging
import os
from pathlib import Path

import pytest
from triton import knobs

from inference.backends import selection
from inference.backends.backend import TORCH
from inference.backends.cuda import backend, kernel_cache
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from tests.inference.conftest import make_model


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that pytest restores what a test sets
    monkeypatch.delenv("TRITON_CACHE_DIR")


def test_triton_uses_a_folder_in_the_cache_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel_cache.use_directory(tmp_path / "cache")
    assert knobs.cache.dir == str(tmp_path / "cache" / "triton")
    assert list((tmp_path / "cache" / "triton").iterdir()) == []
    assert caplog.messages == []


def test_the_operators_choice_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "chosen"))
    kernel_cache.use_directory(tmp_path / "cache")
    assert knobs.cache.dir == str(tmp_path / "chosen")
    assert not (tmp_path / "cache").exists()
    assert caplog.messages == []


@pytest.mark.parametrize("chosen", [False, True])
def test_a_folder_that_cannot_be_written_gives_one_warning_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, chosen: bool
) -> None:
    file = tmp_path / "file"  # root may write to every folder, but not make one below a file
    file.touch()
    if chosen:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(file / "triton"))
    kernel_cache.use_directory(tmp_path if chosen else file)
    [message] = caplog.messages
    assert f"cannot be kept in {file / 'triton'} (Not a directory)" in message
    assert "TRITON_CACHE_DIR" in message
    assert ("engine.cache_directory" in message) == (not chosen)
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    assert folder.stat().st_mode & 0o777 == 0o700, "no other user can plant a kernel"
    folder.rmdir()


def test_the_engine_sets_the_folder_before_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def check(device: object) -> None:
        seen.append(knobs.cache.dir)
        raise ValueError("no kernels here")

    monkeypatch.setattr(backend, "check", check)
    model = CausalLM(make_model())
    with caplog.at_level(logging.ERROR):
        config = EngineConfig(cache_directory=str(tmp_path))
        assert selection._choose_on_cuda(model, config) == TORCH
    assert seen == [str(tmp_path / "triton")]
