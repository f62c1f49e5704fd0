"""Attention by the Triton kernels, compared with a plain implementation."""

import pytest
import torch

from inference.backends.cuda import paged_attention
from tests.inference.attention_cases import CHUNKS, SINGLES, attend

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}
MIXED = [(9, 1), (70, 1), (70, 12), (5, 5)]

sequences = pytest.mark.parametrize("sequences", [SINGLES[::2], CHUNKS[::2], MIXED], ids=["1", "n", "mixed"])


def check(like: torch.Tensor, *arguments: object) -> None:
    output, expected = attend(paged_attention.attend, *arguments, like=like)  # type: ignore[arg-type]
    assert (output - expected).abs().max() < TOLERANCE[like.dtype]


@sequences
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 12), (32, 1, 80)])
def test_equals_plain_attention(
    like: torch.Tensor, heads: int, kv_heads: int, size: int, sequences: list[tuple[int, int]]
) -> None:
    check(like, sequences, heads, kv_heads, size, size)


@sequences
@pytest.mark.parametrize(("window", "softcap"), [(1, 0.0), (0, 2.0), (40, 2.0)])
def test_windows_and_softcaps(
    like: torch.Tensor, window: int, softcap: float, sequences: list[tuple[int, int]]
) -> None:
    check(like, sequences, 4, 2, 16, 16, window, softcap)


def test_values_may_have_another_size_than_keys(like: torch.Tensor) -> None:
    check(like, MIXED, 4, 2, 24, 40)


@pytest.mark.parametrize("splits", [1, 2, 32])
def test_splitting_the_context_gives_the_same_result(
    like: torch.Tensor, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_attention, "_num_splits", lambda *_: splits)
    check(like, [(length, 1) for length in (1, 64, 65, 200)], 3, 1, 64, 64)


@pytest.mark.parametrize(("programs", "splits"), [(1, 16), (2, 8), (3, 4), (16, 1), (1000, 1)])
def test_contexts_are_split_so_that_all_multiprocessors_have_work(programs: int, splits: int) -> None:
    assert paged_attention._num_splits(programs, torch.device("cpu")) == splits
