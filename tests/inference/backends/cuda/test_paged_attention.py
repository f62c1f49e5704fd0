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


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(32, 8, 128), (16, 8, 128), (8, 4, 256), (32, 32, 96), (9, 3, 64), (32, 1, 128)],
    ids=["Llama 3", "Qwen 3", "Gemma 3", "Phi 3", "SmolLM 2", "multi-query"],
)
def test_heads_of_common_models(like: torch.Tensor, heads: int, kv_heads: int, size: int) -> None:
    check(like, [(70, 1), (3, 1), (40, 36)], heads, kv_heads, size, size)


def test_contexts_of_many_tiles_splits_and_blocks(like: torch.Tensor) -> None:
    check(like, [(1500, 1), (129, 1), (128, 1), (900, 3), (300, 40)], 4, 1, 64, 64)


def test_long_windows(like: torch.Tensor) -> None:
    check(like, [(900, 1), (500, 1), (900, 3)], 4, 1, 64, 64, 400)


@pytest.mark.parametrize("size", [64, 24])
def test_queries_may_have_any_strides(size: int) -> None:
    def attend_to_copy(query: torch.Tensor, *arguments: object) -> torch.Tensor:
        wide = query.new_empty(*query.shape[:-1], size + 5)[..., :size]
        return paged_attention.attend(wide.copy_(query), *arguments)  # type: ignore[arg-type]

    like = torch.empty(0)
    output, expected = attend(attend_to_copy, MIXED, 4, 2, size, size, like=like)
    assert (output - expected).abs().max() < TOLERANCE[like.dtype]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy in the interpreter
def test_a_score_that_is_not_finite_in_any_part_makes_the_output_nan() -> None:
    def attend_with_nan(query: torch.Tensor, key: torch.Tensor, *arguments: object) -> torch.Tensor:
        return paged_attention.attend(query * torch.nan, key, *arguments)  # type: ignore[arg-type]

    output, _ = attend(attend_with_nan, [(200, 1), (3, 1)], 3, 1, 64, 64, like=torch.empty(0))
    assert output.isnan().all()


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
    check(like, [(length, 1) for length in (1, 127, 128, 129, 300)], 3, 1, 64, 64)


def test_parts_without_keys_write_no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_attention, "_num_splits", lambda *_: 4)
    parts = []

    class Combine:
        def __getitem__(self, grid: object) -> object:
            return lambda *tensors, **_: parts.append(tensors)

    monkeypatch.setattr(paged_attention.kernels, "combine", Combine())
    new_empty = torch.Tensor.new_empty

    def new_filled(tensor: torch.Tensor, *shape: object, **options: object) -> torch.Tensor:
        return new_empty(tensor, *shape, **options).fill_(7.0)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_filled)
    sequences = [(length, 1) for length in (1, 128, 129, 600)]
    attend(paged_attention.attend, sequences, 1, 1, 64, 64, like=torch.empty(0))
    [(sums, weights, *_)] = parts
    has_keys = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(weights[:, 0].cpu() > 0, has_keys.cpu())
    assert torch.equal((sums[:, 0] == 7.0).all(-1).cpu(), ~has_keys.cpu())


@pytest.mark.parametrize(("programs", "splits"), [(1, 16), (2, 8), (3, 4), (16, 1), (1000, 1)])
def test_contexts_are_split_so_that_all_multiprocessors_have_work(
    programs: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_attention, "_gpu", lambda _: paged_attention._Gpu(num_sms=8, shared=0))
    assert paged_attention._num_splits(programs, torch.device("cpu")) == splits
