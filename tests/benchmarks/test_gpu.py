"""The GPU benchmark: a dry run without a GPU, and the limits of a step."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.limits import Limits, Work


def test_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--parts",
        "attention,engine,server",
        "--models",
        "tiny",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--quick",
        "--kv-cache-gib",
        "0.01",
    ]
    monkeypatch.setattr(sys, "argv", ["gpu", *words, "--output", str(tmp_path)])
    assert gpu.main() == 0
    content = json.loads((tmp_path / "gpu.json").read_text())
    figures = content["figures"]
    assert len(figures) == 15
    assert all(figure["seconds"] > 0 and figure["tokens_per_second"] > 0 for figure in figures)
    assert all(figure["what"] in capsys.readouterr().out for figure in figures[:1])
    assert "<svg" in (tmp_path / "gpu.svg").read_text()


def test_limits_of_a_step() -> None:
    work = Work(weight_bytes=1000, kv_bytes_per_token=10, flops_per_token=50)
    limits = Limits(bytes_per_second=100.0, flops=1000.0)
    assert work.decode_seconds(limits, sequences=2, context=25) == 15.0
    assert work.prefill_seconds(limits, tokens=40) == 2.0
