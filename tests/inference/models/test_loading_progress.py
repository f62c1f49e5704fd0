"""The progress of transformers' loading is counted, and its own bar is not shown."""

import logging
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from inference.interface import progress
from inference.models import causal_lm
from inference.models.loading_progress import following_transformers
from tests.inference.conftest import make_model


def test_tensors_are_counted_while_a_model_loads(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0005)
    caplog.set_level(logging.INFO, "tiller.progress")
    make_model("llama").save_pretrained(tmp_path)
    capfd.readouterr()
    causal_lm.load(tmp_path, torch.float32, torch.device("cpu"))
    amounts = [record.progress.amount for record in caplog.records if record.progress.amount]
    assert amounts
    totals = {total for _, total in amounts}
    assert len(totals) == 1
    assert max(done for done, _ in amounts) <= totals.pop()
    assert "Loading weights" not in capfd.readouterr().err


def test_other_bars_of_transformers_are_left_as_they_are() -> None:
    with following_transformers("loading x"):
        counted = transformers_logging.tqdm([1, 2, 3], desc="Loading weights")
        assert list(counted) == [1, 2, 3]
        assert (counted.done, counted.total) == (3, 3)
        stream = transformers_logging.tqdm(iter([1, 2]), disable=True)
        assert list(stream) == [1, 2]
        assert not hasattr(stream, "done") or stream.done is None or callable(stream.done)
    assert type(transformers_logging.tqdm([1], disable=True)) is not type(counted)
