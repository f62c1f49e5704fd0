"""Errors of the leader between two runs of the model: the followers miss nothing."""

import itertools
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
import torch

from inference.compute.sampler import Sampler
from inference.interface.requests import SteeringSpec
from inference.models.causal_lm import CausalLM
from inference.scheduling.sequence import Sequence
from inference.tensor_parallel.errors import BrokenGroupError
from tests.inference.conftest import request
from tests.inference.steering.conftest import make_direction
from tests.inference.tensor_parallel.conftest import engine, save_model
from tests.inference.test_exactness import random_prompt


def answers(directory: Path, dtype: str) -> dict[tuple[str, int], list[int]]:
    """Several answers with different steering, in blocks of 4 tokens: every few steps need new blocks."""
    plain = [request(f"plain{i}", random_prompt(i, 20), 30) for i in range(4)]
    with engine(directory, 2, block_size=4, dtype=dtype) as (driver, _):
        requests = plain.copy()
        for i, one in enumerate(plain):
            driver.engine.steerer.add(str(i), make_direction(i))
            spec = SteeringSpec({str(i): 1.0})
            requests.append(msgspec.structs.replace(one, request_id=f"steered{i}", steering=spec))
        with patch.object(driver.engine.trainer, "knows", str.isdigit):
            results = driver.run(*requests)
        return {key: result.token_ids for key, result in results.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # with the CPU kernels, and without
def test_a_batch_that_is_built_but_not_run_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    directory = save_model(tmp_path)
    expected = answers(directory, dtype)
    prepare, calls, faults = Sampler.prepare, itertools.count(1), 0

    def fail_now_and_then(sampler: Sampler, sequences: list[Sequence], ahead: bool = False) -> object:
        nonlocal faults
        if len(sequences) > 2 and next(calls) % 3 == 0:
            faults += 1
            raise RuntimeError("a bug")
        return prepare(sampler, sequences, ahead)

    monkeypatch.setattr(Sampler, "prepare", fail_now_and_then)
    assert answers(directory, dtype) == expected
    assert faults > 5


def test_a_run_that_fails_ends_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The followers wait for the rest of the run, so no other run could follow."""
    with engine(save_model(tmp_path), 2) as (driver, _):

        def fail(*_: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("out of memory")

        driver.add(request("a", [5, 6, 7], 5))
        monkeypatch.setattr(CausalLM, "forward", fail)
        with pytest.raises(BrokenGroupError, match="out of memory"):
            driver.step()
