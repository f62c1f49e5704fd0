"""Attention over the paged KV cache, compared with a plain implementation."""

from typing import Any

import pytest
import torch

from inference.backends.cpu.paged_attention import attend as act
from tests.inference.attention_cases import BLOCK, CHUNKS, SINGLES, attend


@pytest.mark.parametrize("size", [4, 8, 12, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (8, 1), (4, 4)])
@pytest.mark.parametrize("sequences", [SINGLES, CHUNKS], ids=["singles", "chunks"])
def test_equals_plain_attention(
    size: int, heads: int, kv_heads: int, sequences: list[tuple[int, int]]
) -> None:
    output, expected = attend(act, sequences, heads, kv_heads, size, size)
    assert (output - expected).abs().max() < 1e-5


@pytest.mark.parametrize("window", [1, 3, 32, 40])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize(
    "sequences", [[(1, 1), (30, 1), (32, 1), (77, 1)], [(1, 1), (30, 30), (77, 50), (130, 70)]]
)
def test_windows_and_softcaps(window: int, softcap: float, sequences: list[tuple[int, int]]) -> None:
    output, expected = attend(act, sequences, 4, 2, 16, 16, window, softcap)
    assert (output - expected).abs().max() < 1e-5


def test_values_may_have_another_size_than_keys() -> None:
    output, expected = attend(act, [(3, 1), (50, 1), (70, 40)], 4, 2, 24, 40)
    assert (output - expected).abs().max() < 1e-5


def test_a_sequence_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    count, length = 12, 70
    width = -(-length // BLOCK)
    keys, values = (
        torch.randn(count * width * BLOCK + 1, 2, 64),
        torch.randn(count * width * BLOCK + 1, 2, 64),
    )
    blocks = torch.randperm(count * width).view(count, width).int()
    query, new = torch.randn(1, 4, count, 64), torch.randn(1, 2, count, 64)
    positions = torch.randint(1, length, (count,))
    slots = blocks.long().gather(1, positions[:, None] // BLOCK)[:, 0] * BLOCK + positions % BLOCK

    def run(rows: list[int]) -> torch.Tensor:
        at = [tensor[:, :, rows] for tensor in (query, new, new)]
        caches = keys.clone(), values.clone()
        inputs = slots[rows], blocks[rows], torch.arange(len(rows) + 1), positions[rows]
        return torch.ops.tiller_cpu.paged_attention(*at, *caches, *inputs, BLOCK, 0.125, 0, 0.0)

    together = run(list(range(count)))
    for rows in ([0], [3, 4], [11, 2, 7], list(range(5))):
        assert torch.equal(run(rows), together[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("size", [8, 20, 64, 80])
def test_a_token_does_not_depend_on_how_its_prompt_is_cut(
    window: int, softcap: float, size: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    length, width = 170, 43
    blocks = torch.randperm(width).view(1, width).int()
    query, new = torch.randn(1, 6, length, size), torch.randn(1, 2, length, size)
    positions = torch.arange(length)
    slots = blocks[0].long()[positions // BLOCK] * BLOCK + positions % BLOCK

    def run(cuts: list[int]) -> torch.Tensor:
        caches = [torch.zeros(width * BLOCK + 1, 2, size, dtype=dtype) for _ in range(2)]
        outputs = []
        for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
            part = slice(begin, end)
            at = [tensor[:, :, part] for tensor in (query, new, new)]
            inputs = slots[part], blocks, torch.tensor([0, end - begin]), positions[part]
            outputs.append(
                torch.ops.tiller_cpu.paged_attention(*at, *caches, *inputs, BLOCK, 0.125, window, softcap)
            )
        return torch.cat(outputs)

    whole = run([])
    for cuts in ([64], [2, 37], [100, 169], [33, 66, 99, 132], list(range(1, length))):
        assert torch.equal(run(cuts), whole)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (8, 1), (10, 2)])
@pytest.mark.parametrize(("size", "value_size"), [(4, 4), (12, 20), (64, 64), (80, 72), (128, 128)])
@pytest.mark.parametrize("sequences", [SINGLES, CHUNKS], ids=["singles", "chunks"])
def test_a_float16_cache_changes_nothing_but_the_rounding_of_keys_and_values(
    heads: int, kv_heads: int, size: int, value_size: int, sequences: list[tuple[int, int]]
) -> None:
    """The result is bit for bit that of a float32 cache with the same rounded numbers."""

    def attend_rounded(query: torch.Tensor, *others: Any) -> torch.Tensor:
        *new, inputs, _, scaling, window, softcap = others
        arguments = scaling, window, softcap
        halves = inputs._replace(key_cache=inputs.key_cache.half(), value_cache=inputs.value_cache.half())
        floats = halves._replace(key_cache=halves.key_cache.float(), value_cache=halves.value_cache.float())
        output = torch.ops.tiller_cpu.paged_attention(query, *new, *halves, *arguments)
        rounded = [x.half().float() for x in new]
        expected = torch.ops.tiller_cpu.paged_attention(query, *rounded, *floats, *arguments)
        assert torch.equal(output, expected)
        assert torch.equal(halves.key_cache.float(), floats.key_cache)
        assert torch.equal(halves.value_cache.float(), floats.value_cache)
        return act(query, *others)

    attend(attend_rounded, sequences, heads, kv_heads, size, value_size)


@pytest.mark.parametrize("size", [8, 11])
def test_numbers_beyond_float16_are_stored_as_its_largest(size: int) -> None:
    caches = [torch.zeros(2, 1, size, dtype=torch.float16) for _ in range(2)]
    new = torch.full((1, 1, 1, size), 1e6)
    new[..., ::3] *= -1
    inputs = torch.tensor([0]), torch.zeros(1, 1, dtype=torch.int32), torch.tensor([0, 1]), torch.tensor([0])
    query = torch.ones(1, 1, 1, size)
    output = torch.ops.tiller_cpu.paged_attention(query, new, new, *caches, *inputs, 1, 1.0, 0, 0.0)
    assert torch.equal(output, new.sign()[0].transpose(0, 1) * 65504)
    new[..., -1] = torch.nan
    output = torch.ops.tiller_cpu.paged_attention(query, new, new, *caches, *inputs, 1, 1.0, 0, 0.0)
    assert output[..., -1].isnan().all(), "a broken row ends its request, so it must not look healthy"


def test_caches_of_different_dtypes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="the same dtype"):
        torch.ops.tiller_cpu.paged_attention(
            *[torch.ones(1, 1, 1, 8)] * 3,
            torch.zeros(1, 1, 8),
            torch.zeros(1, 1, 8, dtype=torch.float16),
            torch.tensor([0]),
            torch.zeros(1, 1, dtype=torch.int32),
            torch.tensor([0, 1]),
            torch.tensor([0]),
            1,
            1.0,
            0,
            0.0,
        )


def test_large_scores_do_not_overflow() -> None:
    keys = torch.tensor([0.0, 1e4, -1e4, 3e3]).view(4, 1, 1).repeat(1, 1, 8)
    values = torch.arange(4.0).view(4, 1, 1).repeat(1, 1, 8)
    query, new = torch.ones(1, 1, 1, 8), torch.full((1, 1, 1, 8), 3e3)
    output = torch.ops.tiller_cpu.paged_attention(
        query,
        new,
        new,
        keys,
        values,
        torch.tensor([3]),
        torch.zeros(1, 1, dtype=torch.int32),
        torch.tensor([0, 1]),
        torch.tensor([3]),
        BLOCK,
        1.0,
        0,
        0.0,
    )
    assert torch.equal(output, torch.ones(1, 1, 8))
